"""Make a finished run a released model: ``python scripts/release.py RUN --name flickr8k``.

RUN is a trained run, or what ``showtell ensemble`` made of one run or of the mean of a run and the
one it started from (named second). The result is a run folder inside the package, found by its
name: 8-bit weights, vocabulary, record, scores and captions, and a model card. Evaluate the
released copy, because the card has to be about the weights as they are released:

    python scripts/release.py RUN --name flickr8k
    showtell evaluate flickr8k data.root=DIR features.root=DIR
    python scripts/release.py --card flickr8k
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from showtell import runs
from showtell.caption import Run, keep_expected, load_run, member_folders
from showtell.comparison.settings import command_of
from showtell.config import build, choices_of
from showtell.decoding.beam import BeamSearch
from showtell.decoding.reranked import RerankedBeamSearch
from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.quantization import quantize_state
from showtell.training.tuning import tuned_by_of
from showtell.vision.encoder import Encoder
from showtell.vision.weights import facts_of, is_published, load_state

LARGEST_MB = 25
SHOWN = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
CARD = """\
# {name}: a captioner of everyday photographs

`showtell caption {name} photo.jpg` writes one English sentence about a photograph.

**Model.** `{model}` on the features of {network}, {encoder}
Weights in 8 bits; seed {seed}, {commit}. Views looked at: {views}.

**Data.** Flickr8k: {train_images:,} photographs with {train_captions:,} captions to learn from,
{val_images:,} to choose the weights by; no other text{words}, no other pictures but {pictures}.
Flickr8k (Hodosh, Young and Hockenmaier 2013) is given for research and education only, and its
photographs belong to those who took them: use what was learned from it for research and education
too.

**Scores** on the official development split, which also chose the weights, so that they are a
little too good. COCO's scorers, {search}; 95 % intervals over images.

| score x 100 | model | 95 % | people | best constant caption |
| --- | --: | --: | --: | --: |
{rows}

`{signature}`

**Known failures.** {failures}

**The same again**, with `data.root=` where the data set lies:

```sh
{commands}
```
"""
PUBLISHED = "whose weights are published ones and not part of this folder."
TUNED = """whose published weights were tuned to the words of the training captions and are
`checkpoints/encoder.safetensors` here."""
LEARNED = """whose published weights learned from the training captions, at last together with
the decoder, and are `checkpoints/encoder.safetensors` here."""
# The entry of run.json with the search and the views that chose the weights.
TRAINED_WITH = "trained_with"
# The entry with the commit at which the released run was made from a trained one, if it was.
PUT_TOGETHER_AT = "put_together_at"
# Where the card's commands put the run that a self-critical one starts from.
TAUGHT = "outputs/runs/taught"
FAILURES = "failures.md"


def release(run: Path, name: str) -> Path:
    """Copy what a captioner needs of ``run``; return the folder of the released model.

    An earlier model of this name is replaced only once this one is complete. Its ``failures.md`` is
    taken over, and should be read again.

    Raises:
        UserError: for a run that cannot be released, or a model that is too large.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"--name {name}: give a plain name, such as flickr8k")
    outer = runs.read_record(run, needs=["model", "encoder", "data", "decoding"])
    if outer.get("status") != "finished":
        raise UserError(f"{run} is {outer.get('status')}, not finished: train it to its end first")
    member, *others = member_folders(run)
    if others:
        raise UserError(f"{run} is an ensemble; a released model is one")
    loaded, record = load_run(run), runs.read_record(member)
    if not isinstance(loaded.search, BeamSearch | RerankedBeamSearch):
        raise UserError(
            f"{run} captions by {type(loaded.search).__name__}, and a card tells of one beam: "
            f"release what showtell ensemble {run} --search decoding=beam3 --output FOLDER makes"
        )
    _check_start(run, record)
    _check_encoder(run, record)
    folder, making = runs.RELEASED / name, runs.RELEASED / f".{name}.making"
    shutil.rmtree(making, ignore_errors=True)
    try:
        _write(making, loaded, member, record, name=name)
        if (folder / FAILURES).is_file():
            shutil.copy(folder / FAILURES, making)
            print(f"note: {FAILURES} is that of the earlier model: look whether it is still true")
        _put(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _check_start(run: Path, record: Mapping[str, Any]) -> None:
    """Refuse a run whose card could not say how to reproduce it."""
    start, mean_of = record.get("start"), record.get(runs.MEAN_OF)
    if start and start["config"].get("start_from"):
        raise UserError(
            f"{run} began with {start['run']}, which began with yet another run, and a card has "
            f"room for one: train it from a run that began with none, or release {start['run']}"
        )
    if mean_of and (len(mean_of) != 2 or not start or start["run"] != mean_of[1]):
        raise UserError(
            f"{run} is no mean of a run and the one it began with, in this order: its card could "
            "not say how to make it again; name these two to showtell ensemble --mean-weights"
        )


def _check_encoder(run: Path, record: Mapping[str, Any]) -> None:
    """Refuse encoder weights that may hold code, or whose origin a card could not state."""
    weights, given = runs.encoder_weights(run), runs.read_config(run)["encoder"]["weights"]
    if weights is None:
        return
    if weights.suffix != ".safetensors":
        raise UserError(f"{weights} may hold code: save it as .safetensors and train with that")
    learned = runs.BEGAN_WITH in record["encoder"]
    if runs.LEARNED_IN in facts_of(weights) and not learned:
        raise UserError(f"{run}: its encoder learned in another run: release that one instead")
    was_published = learned and (given is None or is_published(Path(given)))
    tunings = tuned_by_of(weights)
    if not was_published and not tunings:
        raise UserError(
            f"{weights} does not say which pictures it learned from, and a card has to: train with "
            "published weights, or with what `showtell tune` makes of them"
        )
    if own := [tuned_by["weights"] for tuned_by in tunings if "weights" in tuned_by]:
        raise UserError(
            f"{weights} was tuned from {own[0]}, and a card has no room for how that came about: "
            "train with what `showtell tune` makes of published weights"
        )


def _write(
    folder: Path, loaded: Run, member: Path, record: Mapping[str, Any], *, name: str
) -> None:
    (folder / runs.BEST_WEIGHTS.parent).mkdir(parents=True)
    state = quantize_state(load_state(member / runs.BEST_WEIGHTS))
    # safetensors' own writer leaves files that only their owner may read.
    write_atomically(folder / runs.BEST_WEIGHTS, save(state))
    config, weights = runs.read_config(loaded.folder), runs.encoder_weights(loaded.folder)
    kept, shareable = _kept(record, loaded.record), _shareable(config, weights)
    if weights:
        file = folder / runs.LEARNED_ENCODER
        state = quantize_state(load_state(weights))
        write_atomically(file, save(state, metadata=facts_of(weights)))
        # Weights rounded to 8 bits have another identity.
        encoder: Encoder = build("encoder", {**config["encoder"], "weights": str(file)})
        kept["encoder"] = {**kept["encoder"], "identity": encoder.identity.to_json()}
    kept["encoder"] = {**kept["encoder"], "weights": shareable["encoder"]["weights"]}
    loaded.vocabulary.save(folder / runs.VOCABULARY)
    keep_expected(folder, loaded.search, kept, loaded.vocabulary)
    (folder / runs.CONFIG).write_text(yaml.safe_dump(shareable, sort_keys=False))
    if kept.get("start"):
        taught, start = Path(TAUGHT).name, _shareable(kept["start"]["config"], weights)
        kept["start"] = {**kept["start"], "run": taught, "config": start}
        if runs.MEAN_OF in kept:
            kept[runs.MEAN_OF] = [name, taught]
    runs.write_json(folder / runs.RECORD, kept)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    if size > LARGEST_MB:
        raise UserError(f"{loaded.folder} would have {size:.0f} MB, {LARGEST_MB} are allowed")
    # Raises if the parts do not fit together.
    assert load_run(folder).encoder.identity.to_json() == kept["encoder"]["identity"]


def _kept(record: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
    """The released record: of a training (``record``) and the run made from it (``outer``)."""
    trained_with = {"decoding": record["decoding"], "views": record.get("views", "original")}
    kept = {k: v for k, v in record.items() if k not in ("alarms", "platform")}
    kept |= {"decoding": outer["decoding"], "views": outer.get("views", "original")}
    kept.setdefault(TRAINED_WITH, trained_with)  # a model that was released before has one
    if "members" in outer:
        kept[PUT_TOGETHER_AT] = outer["commit"]
    if looks := {*record.get("test_looks", ()), *outer.get("test_looks", ())}:
        kept["test_looks"] = sorted(looks)
    return kept


def _shareable(config: Mapping[str, Any], carried: Path | None) -> dict[str, Any]:
    """A configuration without the folders of this machine.

    ``carried`` is the file of encoder weights that comes with the run; None if there is none.
    Published encoder weights are left out, because anybody can download them.
    """
    weights = config["encoder"]["weights"]
    # A file that a run copied is its user's own, whatever its name; one that learned began with it.
    is_copy = carried is not None and runs.LEARNED_IN not in facts_of(carried)
    if weights and is_published(Path(weights)) and not is_copy:
        weights = None
    elif weights and carried:
        weights = f"outputs/{Path(weights).name}"
    usual = {
        "encoder": {**config["encoder"], "weights": weights},
        "data": {**config["data"], "root": "outputs/data/flickr8k"},
        "features": {**config["features"], "root": "outputs/features"},
        "output": {"root": "outputs/runs", "folder": None},
        "start_from": TAUGHT if config.get("start_from") else None,
    }
    return {**config, **usual}


def _put(new: Path, place: Path) -> None:
    """Move ``new`` to ``place``; an old folder there is deleted only once the new one is in."""
    old = place.with_name(f".{place.name}.old")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_card(folder: Path) -> None:
    """Write ``README.md``: what the model is, its training data, its scores and its failures.

    Known failures must be written by a person, in ``failures.md`` beside it.

    Raises:
        UserError: ``failures.md`` is missing, or the model was not evaluated.
    """
    record = runs.read_record(folder, needs=["model", "encoder", "data"])
    failures, scored = folder / FAILURES, folder / "scores-val.json"
    if not failures.is_file() or not failures.read_text().strip():
        raise UserError(f"{failures} is missing: look at its captions, and write where it fails")
    if not scored.is_file():
        raise UserError(
            f"{scored} is missing: score it first, with showtell evaluate {folder.name}"
        )
    scores = json.loads(scored.read_text())
    images, captions = record["data"]["images"], record["data"]["captions"]
    card = CARD.format(
        name=folder.name,
        model=record["model"]["_target_"].rpartition(".")[2],
        network=record["encoder"]["identity"]["network"],
        encoder=_told_encoder(folder, record),
        words=_told_words(record),
        pictures=_told_pictures(record),
        views=", ".join(record["views"].split("+")),
        seed=record["seed"],
        commit=_told_commits(record),
        train_images=images["train"],
        train_captions=captions["train"],
        val_images=images["val"],
        search=_told_search(record["decoding"]),
        rows="\n".join(_row(scores, metric) for metric in SHOWN),
        signature=scores["signature"],
        failures=failures.read_text().strip(),
        commands="\n".join(_commands(folder, record)),
    )
    (folder / "README.md").write_text(card)


def _told_commits(record: Mapping[str, Any]) -> str:
    trained = record["commit"]
    put_together = record.get(PUT_TOGETHER_AT, trained)
    if put_together == trained:
        return f"commit `{_short(trained)}`"
    return f"trained at commit `{_short(trained)}`, put together at `{_short(put_together)}`"


def _short(commit: str) -> str:
    """A shortened commit hash, with ``+changes`` if it has that."""
    sha, plus, changes = commit.partition("+")
    return f"{sha[:12]}{plus}{changes}"


def _told_encoder(folder: Path, record: Mapping[str, Any]) -> str:
    if runs.BEGAN_WITH in record["encoder"]:
        return LEARNED
    return PUBLISHED if runs.encoder_weights(folder) is None else TUNED


def _told_words(record: Mapping[str, Any]) -> str:
    """Pretrained word vectors were learned from text, too."""
    return " but that of its word vectors" if record["text"].get("vectors") else ""


def _told_pictures(record: Mapping[str, Any]) -> str:
    """What the published weights were trained on; timm's may be trained on anything."""
    is_timm = "timm/" in record["encoder"]["identity"]["network"]
    return "those that its encoder's weights were published with" if is_timm else "ImageNet's"


def _told_search(decoding: Mapping[str, Any]) -> str:
    told = f"beam {decoding['beam_size']}"
    if "candidates" in decoding:
        told += f", the best of {decoding['candidates']} by expected n-grams"
    return f"{told}, which guide the beam" if decoding.get("guidance") else told


def _row(scores: Mapping[str, float], metric: str) -> str:
    names = (
        *(metric, f"95 % low/{metric}", f"95 % high/{metric}", f"people/{metric}"),
        f"constant caption/{metric}",
    )
    # METEOR is not computed for people.
    own, low, high, people, constant = (
        f"{100 * scores[name]:.1f}" if name in scores else "" for name in names
    )
    return f"| {metric} | {own} | {low} to {high} | {people} | {constant} |"


def _commands(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """The commands that reproduce it: its encoder, the run it started from, itself, its search."""
    weights = runs.encoder_weights(folder)
    if weights and (tunings := tuned_by_of(weights)):
        yield from _tuning_commands(record, tunings)
    if record.get("start"):
        yield f"{command_of(record['start']['config'])} output.folder={TAUGHT}"
    config, trained = runs.read_config(folder), f"outputs/runs/{folder.name}"
    yield f"{command_of({**config, **record[TRAINED_WITH]})} output.folder={trained}"
    is_mean, now = runs.MEAN_OF in record, {key: record[key] for key in record[TRAINED_WITH]}
    if is_mean or now != record[TRAINED_WITH]:
        members = f"{trained} {TAUGHT} --mean-weights" if is_mean else trained
        words = shlex.split(command_of(config))
        search = shlex.join(word for word in words if word.startswith("decoding"))
        yield (
            f"showtell ensemble {members} --search {search} --views {record['views']} "
            f"--output {trained}_released"
        )


def _tuning_commands(
    record: Mapping[str, Any], tunings: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The commands that tuned the encoder: its networks together, or separately and then joined."""
    output, identity = record["encoder"]["weights"], record["encoder"]["identity"]
    networks, preprocessing = identity["network"].split("+"), identity["preprocessing"]
    if len(tunings) == 1:
        yield _tuning_command(networks, preprocessing, tunings[0], output)
        return
    files = []
    for number, (network, tuned_by) in enumerate(zip(networks, tunings, strict=True), start=1):
        files.append(f"{output.removesuffix('.safetensors')}_{number}.safetensors")
        yield _tuning_command([network], preprocessing, tuned_by, files[-1])
    yield shlex.join(["python", "scripts/join_encoders.py", *files, "--output", output])


def _tuning_command(
    networks: Sequence[str],
    preprocessing: Mapping[str, Any],
    tuned_by: Mapping[str, Any],
    output: str,
) -> str:
    choice = networks[0] if len(networks) == 1 else "joined"
    named = [f"encoder.networks=[{','.join(networks)}]"] if len(networks) > 1 else []
    usual = choices_of("encoder")[choice]["preprocessing"]
    # Older files do not record the image size they were tuned to.
    seen = {**preprocessing, "size": tuned_by.get("size", preprocessing["size"])}
    changes = [f"encoder.preprocessing.{k}={v}" for k, v in seen.items() if usual.get(k) != v]
    how = [(f"--{name}", str(tuned_by[name])) for name in ("epochs", "lr", "phrases")]
    return shlex.join(
        [
            *("showtell", "tune", f"encoder={choice}", *named, *changes),
            *(f"seed={tuned_by['seed']}", *chain(*how), "--output", output),
        ]
    )


def main() -> None:
    """Release a run, or write the card of a released model that has been evaluated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a finished run folder")
    parser.add_argument("--name", help="what the model will answer to")
    parser.add_argument("--card", metavar="NAME", help="write the model card of a released model")
    options = parser.parse_args()
    try:
        if options.card and not (options.run or options.name):
            write_card(runs.RELEASED / options.card)
        elif options.run and options.name and not options.card:
            print(release(options.run, options.name))
        else:
            parser.error("give RUN and --name, or --card NAME")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
