"""The ``showtell`` command and its subcommands."""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from showtell.errors import UserError

RUN = "a run folder, or the name of a released model"
RUNS = "a run folder, or a sweep's with many"

# The options of the configuration that `showtell tune` uses.
USED_BY_TUNE = (
    *("data=", "data.", "encoder=", "encoder.", "seed="),
    *("trainer.accelerator=", "trainer.limit_images="),
)

# torch, and everything that imports it, is imported inside the commands, after the configuration
# was checked and the data set read, so that `--help` and mistakes are answered at once.


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run one command; a `UserError` becomes one sentence and status 1."""
    # Importing PyTorch and building a network make a million objects and no garbage: collecting
    # takes half a second. Garbage of this many objects is little memory.
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)  # see train.py
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no more KEY=VALUE after an option such as --split.
    if rest and (not hasattr(options, "overrides") or any(w.startswith("-") for w in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="showtell", description="The image-captioning lab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="check a data set and say what is wrong where")
    _add_overrides(doctor, "data=table data.file=captions.csv, data.root=FOLDER, ...")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")
    doctor.add_argument("--examples", type=int, default=10, metavar="N", help="shown of each kind")
    doctor.set_defaults(command=_doctor)

    features = commands.add_parser("features", help="fill the feature store ahead of training")
    _add_overrides(features, "data=... data.root=... encoder=... features.root=...")
    features.set_defaults(command=_features)

    tune = commands.add_parser("tune", help="teach an encoder the words of the captions")
    _add_overrides(tune, "data=... data.root=... encoder=... seed=...")
    tune.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="what to name with encoder.weights=FILE.safetensors",
    )
    tune.add_argument(
        "--epochs", type=_at_least_1, default=4, metavar="N", help="default: %(default)s"
    )
    tune.add_argument(
        "--lr", type=float, default=3e-4, metavar="RATE", help="the highest; default: %(default)s"
    )
    tune.add_argument(
        "--phrases",
        type=_at_least_1,
        default=1,
        metavar="N",
        help="teach sequences of up to N words too; default: %(default)s, words alone",
    )
    tune.set_defaults(command=_tune)

    evaluate = commands.add_parser("evaluate", help="all metrics of a run on a split")
    evaluate.add_argument("run", type=_run_folder, metavar="RUN", help=RUN)
    evaluate.add_argument("--split", choices=["val", "test"], default="val")
    _add_overrides(evaluate, "data.root=... encoder.weights=... of what moved")
    evaluate.set_defaults(command=_evaluate)

    compare = commands.add_parser("compare", help="a table over runs and seeds, with paired tests")
    compare.add_argument("runs", type=_run_folder, nargs="+", metavar="RUN", help=RUNS)
    compare.add_argument("--split", choices=["val", "test"], default="val")
    compare.add_argument(
        "--output", type=Path, metavar="FILE", help="the table as Markdown (.md) or .csv"
    )
    compare.set_defaults(command=_compare)

    ensemble = commands.add_parser("ensemble", help="make one run of several that write together")
    ensemble.add_argument("runs", type=_run_folder, nargs="+", metavar="RUN", help=RUN)
    ensemble.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="the run folder to make"
    )
    ensemble.add_argument(
        "--search",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="decoding=... decoding.beam_size=...; default: the search of the first run",
    )
    ensemble.add_argument(
        "--views", metavar="VIEWS", help="as views=... of train.py; default: those of the first run"
    )
    ensemble.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="data.root=... features.root=...; decoding=reranked reads it; default: as in training",
    )
    ensemble.add_argument(
        "--mean-weights",
        action="store_true",
        help="one model of the mean of their weights: of a run and the one that it began with",
    )
    ensemble.set_defaults(command=_ensemble)

    caption = commands.add_parser("caption", help="caption new pictures with a run")
    caption.add_argument("run", type=_run_folder, metavar="RUN", help=RUN)
    caption.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    caption.add_argument(
        "--beam-size", type=_at_least_1, metavar="N", help="default: the run's own"
    )
    caption.add_argument(
        "--encoder-weights", metavar="FILE", help="default: those in RUN, or the published ones"
    )
    caption.add_argument(
        "--output", type=Path, metavar="FILE", help="captions as COCO results JSON"
    )
    _add_sampling(caption)
    caption.set_defaults(command=_caption)

    report = commands.add_parser("report", help="one self-contained HTML page of a run or sweep")
    report.add_argument("run", type=_run_folder, metavar="RUN", help=RUNS)
    report.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/report.html")
    report.set_defaults(command=_report)
    return parser


def _run_folder(text: str) -> Path:
    """The folder of the run that a user names."""
    from showtell.runs import locate

    return locate(text)


def _add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help=f"as for train.py: {example}"
    )


def _add_sampling(caption: argparse.ArgumentParser) -> None:
    """Add the options of drawn captions; their defaults are in conf/decoding/nucleus.yaml."""
    drawn = caption.add_argument_group("drawn captions")
    drawn.add_argument(
        "--samples", type=_at_least_1, metavar="N", help="draw so many of each picture"
    )
    drawn.add_argument("--temperature", type=float, metavar="T", help="below 1: more probable ones")
    drawn.add_argument("--top-k", type=int, metavar="K", help="from the K most probable words")
    drawn.add_argument("--top-p", type=float, metavar="P", help="from words of this probability")
    drawn.add_argument("--seed", type=int, metavar="S", help="another one draws other captions")


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _doctor(options: argparse.Namespace) -> int:
    from showtell.config import compose
    from showtell.data.checks import examine_config
    from showtell.runs import write_json

    examination = examine_config(compose(options.overrides)["data"])
    print("\n".join(examination.lines(examples=options.examples)))
    if options.json:
        write_json(options.json, examination.to_json())
    return 0 if examination.healthy else 1


def _features(options: argparse.Namespace) -> int:
    from showtell.config import build, compose

    config = compose(options.overrides)
    data = build("data", config["data"])
    from showtell.inputs import extract

    extract(config, data)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from showtell.config import build, compose
    from showtell.files import check_writable

    if options.output.suffix != ".safetensors":
        raise UserError(f"--output {options.output}: give a name that ends in .safetensors")
    if options.output.exists():
        raise UserError(f"{options.output} exists; name another --output or remove it")
    if unused := [o for o in options.overrides if not o.lstrip("+").startswith(USED_BY_TUNE)]:
        raise UserError(
            f"{unused[0]} has no effect on `showtell tune`, "
            "which takes --epochs, --lr and --phrases"
        )
    check_writable(options.output)
    config = compose(options.overrides)
    data = build("data", config["data"])
    from showtell.parts import tune_encoder

    how = {"epochs": options.epochs, "lr": options.lr, "phrases": options.phrases}
    tune_encoder(config, data, options.output, **how)
    print(f"weights: {options.output}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from showtell.config import PLACES_OF_DATA, build, saved_config

    # How splits are drawn must not change: the run would be scored on images it was trained on.
    changeable = ("data.skip_rejected=", "features.", "encoder.weights=", "trainer.accelerator=")
    config = saved_config(
        options.run / "config.yaml", options.overrides, (*PLACES_OF_DATA, *changeable)
    )
    data = build("data", config["data"])
    from showtell.evaluation import evaluate

    evaluate(options.run, options.split, config, data)
    print(f"scores: {options.run / f'scores-{options.split}.json'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from showtell.comparison.export import check_table_file, write_table
    from showtell.comparison.table import print_table, tabulate

    if options.output:
        check_table_file(options.output)
    table = tabulate(options.runs, options.split)
    print_table(table)
    if options.output:
        write_table(table, options.output)
        print(f"table: {options.output}")
    return 0


def _ensemble(options: argparse.Namespace) -> int:
    from showtell.config import compose

    if strange := [each for each in options.search if not each.startswith("decoding")]:
        raise UserError(f"--search {strange[0]}: give decoding=CHOICE or decoding.KEY=VALUE")
    if options.search and not any(each.startswith("decoding=") for each in options.search):
        raise UserError(f"--search {options.search[0]}: of which search? give decoding=CHOICE")
    search = compose(options.search)["decoding"] if options.search else None
    from showtell.ensembles import gather

    folder = gather(
        options.runs,
        options.output,
        search=search,
        views=options.views,
        mean_weights=options.mean_weights,
        places=options.data,
    )
    print(f"run: {folder}")
    return 0


def _caption(options: argparse.Namespace) -> int:
    drawing = _drawing(options)
    from showtell.caption import load_run

    run = load_run(options.run, encoder_weights=options.encoder_weights)
    try:
        run = run.with_beam(options.beam_size) if drawing is None else run.with_sampling(**drawing)
    except ValueError as error:  # out of its range
        raise UserError(str(error)) from error
    pictures, problems = _find_pictures(options.pictures)
    captions: list[tuple[Path, str]] = []
    for result in run.caption_files(pictures, samples=options.samples):
        if result.caption is None:
            problems.append(str(result.problem))
        else:
            captions.append((result.path, result.caption))
            print(f"{result.path}\t{result.caption}", flush=True)
    if options.output:
        _write_captions(options.output, captions)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        captioned = len({path for path, _ in captions})
        print(f"skipped {len(problems)}, captioned {captioned}", file=sys.stderr)
    return 1 if problems else 0


def _drawing(options: argparse.Namespace) -> dict[str, Any] | None:
    """The options of `Sampling` if captions are drawn; None if they are searched for."""
    names = ("temperature", "top_k", "top_p", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.samples is None:
        if given:
            flag = next(iter(given)).replace("_", "-")
            raise UserError(f"--{flag} has no effect without --samples N; give both or none")
        return None
    if options.beam_size is not None:
        raise UserError("--beam-size has no effect on captions that are drawn; leave it out")
    from showtell.config import choices_of

    usual = choices_of("decoding")["nucleus"]
    return {name: given.get(name, usual[name]) for name in names}


def _find_pictures(named: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The images that files and folders stand for, and the problems with unusable ones."""
    from showtell.caption import find_pictures

    pictures, problems = [], []
    for path in named:
        try:
            pictures += find_pictures(path)
        except UserError as error:
            problems.append(str(error))
    return list(dict.fromkeys(pictures)), problems


def _write_captions(output: Path, captions: Sequence[tuple[Path, str]]) -> None:
    """Write the COCO results format; images with the same file name are identified by path."""
    from showtell.runs import write_json

    names = Counter(path.name for path in {path for path, _ in captions})
    rows = [
        {"image_id": path.name if names[path.name] == 1 else str(path), "caption": caption}
        for path, caption in captions
    ]
    write_json(output, rows)


def _report(options: argparse.Namespace) -> int:
    from showtell.runs import RECORD

    if (options.run / RECORD).is_file():
        from showtell.report.run_page import write_report

        page = write_report(options.run, options.output)
    else:
        from showtell.comparison.sweep_page import write_sweep_report

        page = write_sweep_report(options.run, options.output)
    print(f"report: {page}")
    return 0
