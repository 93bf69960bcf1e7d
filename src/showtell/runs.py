"""The run folder: created exclusively, described by ``run.json``, loadable anywhere.

config.yaml              the configuration as composed
run.json                 what the run is: data, encoder, model, commit, versions, status
vocabulary.json          the words
metrics.csv              the learning curves
checkpoints/best.safetensors   decoder weights of the best validation, to share
checkpoints/expected.safetensors  the n-gram prediction of decoding=reranked
checkpoints/encoder.*          weights of the encoder, if they came from a user's file, or if it was
                               trained too: those of the same validation
checkpoints/last.ckpt          state of the training, for ``resume``
captions-<split>.json, scores-<split>.json
statistics-<split>.safetensors what the scores were computed from, for ``showtell compare``
members/<number>               instead of checkpoints, the runs that an ensemble is made of
"""

from __future__ import annotations

import json
import platform
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from showtell.config import with_added_defaults
from showtell.errors import UserError
from showtell.files import remove_parts, write_atomically, write_together
from showtell.metrics.alarms import Alarm
from showtell.metrics.statistics import CaptionStatistics
from showtell.types import Split

if TYPE_CHECKING:  # a comparison of runs needs no torch
    from torch import nn

    from showtell.vision.encoder import Encoder

FORMAT = 1
SAME_SCORE = 1e-9  # METEOR's Java and our formula agree to 1e-12
RECORD = "run.json"
CONFIG = "config.yaml"
VOCABULARY = "vocabulary.json"
BEST_WEIGHTS = Path("checkpoints/best.safetensors")
LEARNED_ENCODER = Path("checkpoints/encoder.safetensors")
EXPECTED = Path("checkpoints/expected.safetensors")
MEMBERS = "members"
# run.json of an ensemble of several encoders: which features each member reads, as spans.
COLUMNS = "columns"
# run.json of averaged weights: the runs that they are the mean of.
MEAN_OF = "mean_of"
# run.json of a trained encoder: the hash of the weights that it started with.
BEGAN_WITH = "began_with"
# Metadata entry in a trained encoder's file, with the metadata of the file it started from.
LEARNED_IN = "learned_in"
TRAINING = "training"  # key of alarms raised before any split is evaluated
LAST_CHECKPOINT = Path("checkpoints/last.ckpt")
# libyaml reads hundreds of configurations in the time that PyYAML takes for dozens.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What decoding needs of a run, relative to its folder.
DECODER = (BEST_WEIGHTS, Path(VOCABULARY), Path(RECORD))
# Models that come with the package, each a run folder without a training state.
RELEASED = Path(__file__).parent / "released"
VERSIONED_PACKAGES = ("showtell", "torch", "torchvision", "lightning", "hydra-core", "timm")


def locate(run: str | Path) -> Path:
    """The folder of a run: the run folder at that path, or else the released model of that name.

    A folder of that name that is not a run, such as a data set's, does not hide the model.
    """
    folder = Path(run)
    released = RELEASED / folder
    is_name = len(folder.parts) == 1 and folder.name not in (".", "..")
    return released if is_name and released.is_dir() and not (folder / RECORD).exists() else folder


def released_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(file.parent.name for file in RELEASED.glob(f"*/{RECORD}"))


def create_run_folder(root: Path, name: str) -> Path:
    """Make a new run folder below ``root``; concurrent calls never get the same one."""
    readable = re.sub(r"[^\w.=+-]+", "_", name)
    while True:
        stamp = datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S")
        with suppress(FileExistsError):
            return _make(root / f"{stamp}_{readable}_{secrets.token_hex(3)}")


def claim_folder(folder: Path) -> Path:
    """Make the run folder that the user named.

    Raises:
        UserError: it exists already, or cannot be made.
    """
    try:
        return _make(folder)
    except FileExistsError as error:
        raise UserError(f"{folder} exists; name another output.folder or remove it") from error


def _make(folder: Path) -> Path:
    """Make a run folder that must not exist yet, with its ``checkpoints`` folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        (folder / BEST_WEIGHTS.parent).mkdir()
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            raise
        raise UserError(
            f"{folder} cannot be made ({error.strerror}); give write permission there, or set "
            "output.root to another place"
        ) from error
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON atomically."""
    write_atomically(path, _json(content))


def _json(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    # A file name that is not UTF-8 has lone surrogates, which JSON writes in this way too.
    return text.encode(errors="backslashreplace")


def read_record(folder: Path, *, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Read ``run.json`` of the run in ``folder``.

    ``needs`` are entries that must be there and hold a mapping.

    Raises:
        UserError: this is not a run folder, has another format, or lacks an entry.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        named = "".join(f", or {name}, which comes with showtell" for name in released_models())
        raise UserError(
            f"{folder} is not a run folder: it has no {RECORD}; give the folder that "
            f"`python train.py` printed after `run:`{named}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from a copy") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, this showtell reads format {FORMAT}; "
            f"use the version that wrote it ({record.get('versions', {}).get('showtell', '?')})"
            if isinstance(record, dict)
            else f"{path} does not describe a run; restore it from a copy"
        )
    missing = [key for key in needs if not isinstance(record.get(key), dict)]
    if missing:
        raise UserError(f"{path} does not say its {', '.join(missing)}; restore it from a copy")
    return dict(record)


def update_record(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change some entries of ``run.json``; return all entries."""
    record = {**read_record(folder), **changes}
    write_json(folder / RECORD, record)
    return record


def write_alarms(folder: Path, where: str, alarms: Sequence[Alarm]) -> None:
    """Write alarms into ``run.json``, in place of earlier ones under ``where``.

    ``where`` is `TRAINING`, or the split whose captions raised them.
    """
    before = read_record(folder).get("alarms", {})
    entries = {**before, where: [alarm.to_json() for alarm in alarms]}
    if alarms or where in before:
        update_record(folder, alarms={name: listed for name, listed in entries.items() if listed})


def alarms_of(record: Mapping[str, Any]) -> dict[str, list[Alarm]]:
    """The alarms in ``run.json``, by where they were raised: `TRAINING` or a split.

    Raises:
        UserError: the entry does not hold alarms.
    """
    try:
        entries = dict(record.get("alarms", {}))
        return {where: [Alarm(**alarm) for alarm in listed] for where, listed in entries.items()}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the alarms in {RECORD} are none ({error}); remove that entry, or restore {RECORD} "
            "from a copy"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml`` of the run in ``folder``, without checking its options.

    Raises:
        UserError: it is missing, damaged, or not a configuration.
    """
    path = folder / CONFIG
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); restore it from a copy") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is no configuration; restore it from a copy")
    return config


def find_run(root: Path, config: Mapping[str, Any]) -> Path | None:
    """A run below ``root`` with this ``config`` that is finished or can be resumed, if any.

    With it a job that is started again finds its earlier run.
    """
    for folder in sorted(file.parent for file in root.glob(f"*/{RECORD}")):
        with suppress(UserError):  # half written, or not a run
            status = read_record(folder).get("status")
            is_saved = (folder / LAST_CHECKPOINT).is_file()
            of_use = status == "finished" or (is_saved and status in ("running", "interrupted"))
            if of_use and with_added_defaults(read_config(folder)) == with_added_defaults(config):
                return folder
    return None


def save_weights(folder: Path, decoder: nn.Module, encoder: Encoder | None = None) -> None:
    """Write the weights of ``decoder`` as ``checkpoints/best.safetensors``.

    If ``encoder`` was trained with it, its weights are written beside them, and its identity into
    ``run.json``. If a kill leaves one without the other, loading the run raises an error, and
    resuming it repairs it.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in decoder.state_dict().items()}
    files = {folder / BEST_WEIGHTS: [save(tensors)]}
    earlier = None
    if encoder is not None:
        from showtell.vision.weights import facts_of, half_file

        earlier = encoder_weights(folder)
        record = read_record(folder)
        described = {**record["encoder"], "identity": encoder.identity.to_json()}
        before = {} if earlier is None else facts_of(earlier)
        if LEARNED_IN in before:  # a file of an earlier validation
            before = json.loads(before[LEARNED_IN])["before"]
        told = json.dumps({"before": before})
        files[folder / LEARNED_ENCODER] = [half_file(encoder.body, {LEARNED_IN: told})]
        files[folder / RECORD] = [_json({**record, "encoder": described})]
    for file in files:
        remove_parts(file)  # left by a training that was killed while writing
    write_together(files)
    if earlier is not None and earlier != folder / LEARNED_ENCODER:
        earlier.unlink()  # a user's file with another suffix


def load_weights(folder: Path, decoder: nn.Module) -> None:
    """Load what ``save_weights`` wrote, or a release's 8-bit weights, into ``decoder``.

    Raises:
        UserError: the file is missing, damaged or of another architecture.
    """
    from safetensors.torch import load_file

    from showtell.quantization import dequantize_state

    path = folder / BEST_WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has not finished a validation; train it on")
    try:
        decoder.load_state_dict(dequantize_state(load_file(path)))
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not fit {RECORD} beside it ({reason}); restore it from a copy"
        ) from error


def keep_encoder_weights(folder: Path, file: Path) -> None:
    """Copy an encoder's weights file into the run folder, beside the decoder's weights."""
    kept = folder / BEST_WEIGHTS.with_name(f"encoder{file.suffix}")
    write_atomically(kept, file.read_bytes())


def encoder_weights(folder: Path) -> Path | None:
    """The file of the encoder's weights; None if they are published ones."""
    if (folder / LEARNED_ENCODER).is_file():  # the newer one, if a kill left two
        return folder / LEARNED_ENCODER
    return next((folder / BEST_WEIGHTS.parent).glob("encoder.*"), None)


def captioner_files(folder: Path) -> list[Path]:
    """The files that captioning needs of a run folder (not an ensemble's), relative to it."""
    weights = encoder_weights(folder)
    expected = [EXPECTED] if (folder / EXPECTED).is_file() else []
    return [*DECODER, *expected, *([] if weights is None else [weights.relative_to(folder)])]


def save_statistics(folder: Path, split: Split, statistics: CaptionStatistics) -> None:
    """Write ``statistics-<split>.safetensors``: an array [I, K] per metric, and what was scored."""
    facts = {
        "image_ids": json.dumps(statistics.image_ids),
        "references_sha256": statistics.references_sha256,
        "signature": statistics.signature,
    }
    write_atomically(_statistics_file(folder, split), save(statistics.arrays, metadata=facts))


def has_statistics(folder: Path, split: Split) -> bool:
    """Whether an evaluation left a file for ``load_statistics``."""
    return _statistics_file(folder, split).is_file()


def load_statistics(folder: Path, split: Split) -> CaptionStatistics:
    """Read what ``save_statistics`` wrote, and check that it matches the scores beside it.

    Raises:
        UserError: the split was not evaluated, or the file is damaged or out of date.
    """
    path = _statistics_file(folder, split)
    remedy = f"run `showtell evaluate {folder} --split {split}`"
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}, which writes it")
    try:
        statistics = _read_statistics(path)
        scores = statistics.scores
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({reason}): {remedy}") from error
    if not _stands_in(folder / f"scores-{split}.json", statistics.signature, scores):
        raise UserError(f"{path} does not belong to scores-{split}.json beside it: {remedy}")
    return statistics


def _statistics_file(folder: Path, split: Split) -> Path:
    return folder / f"statistics-{split}.safetensors"


def _read_statistics(path: Path) -> CaptionStatistics:
    with safe_open(path, framework="numpy") as file:
        arrays = {metric: file.get_tensor(metric) for metric in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    return CaptionStatistics(
        image_ids=tuple(map(str, json.loads(facts["image_ids"]))),
        arrays=arrays,
        references_sha256=facts["references_sha256"],
        signature=facts["signature"],
    )


def _stands_in(path: Path, signature: str, scores: Mapping[str, float]) -> bool:
    """Whether ``scores-<split>.json`` holds these scores, with this signature."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return written["signature"] == signature and all(
            abs(written[name] - score) < SAME_SCORE for name, score in scores.items()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def is_ensemble(record: Mapping[str, Any]) -> bool:
    """Whether several models write together, by ``run.json``; a single member is a run alone."""
    return len(record.get("members", ())) > 1


def describe_origin() -> dict[str, Any]:
    """Commit, versions and platform of this process, and the time."""
    versions = {package: version(package) for package in VERSIONED_PACKAGES}
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the source, with ``+changes`` for a dirty tree; ``unknown`` without git."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
