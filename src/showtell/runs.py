"""The run folder: created exclusively, described by ``run.json``, loadable anywhere.

config.yaml              the configuration as composed
run.json                 what the run is: data, encoder, model, commit, versions, status
vocabulary.json          the words
metrics.csv              the curves
checkpoints/best.safetensors   weights of the best validation, for everyone
checkpoints/expected.safetensors  what decoding=reranked expects of a picture
checkpoints/encoder.*          weights of the encoder, where a file of the user's gave them, or
                               where it learned too: those of the same validation
checkpoints/last.ckpt          state of the training, for ``resume`` on the machine that made it
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

from showtell.config import completed
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
# Of an ensemble over several encoders: which of their features each member reads, as spans.
COLUMNS = "columns"
# The entry of run.json that names the runs of whose weights these are the mean.
MEAN_OF = "mean_of"
# Of an encoder that learned: the hash of the weights that it had before.
BEGAN_WITH = "began_with"
# The entry of such an encoder's file, with what its file said before.
LEARNED_IN = "learned_in"
TRAINING = "training"  # where alarms are raised before any split is evaluated
LAST_CHECKPOINT = Path("checkpoints/last.ckpt")
# libyaml reads hundreds of configurations in the time that PyYAML takes for dozens.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What the words of a run are written with, relative to its folder.
DECODER = (BEST_WEIGHTS, Path(VOCABULARY), Path(RECORD))
# Models that come with the package, each a run folder without the state of its training.
RELEASED = Path(__file__).parent / "released"
VERSIONED_PACKAGES = ("showtell", "torch", "torchvision", "lightning", "hydra-core", "timm")


def locate(run: str | Path) -> Path:
    """The folder of a run: the one of that path, or else the released model of that name.

    A data set may lie in a folder of the same name; it is no run.
    """
    folder = Path(run)
    released = RELEASED / folder
    is_name = len(folder.parts) == 1 and folder.name not in (".", "..")
    return released if is_name and released.is_dir() and not (folder / RECORD).exists() else folder


def released_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(file.parent.name for file in RELEASED.glob(f"*/{RECORD}"))


def create_run_folder(root: Path, name: str) -> Path:
    """Make a new folder below ``root``; nobody else, however quick, gets the same one."""
    readable = re.sub(r"[^\w.=+-]+", "_", name)
    while True:
        stamp = datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S")
        with suppress(FileExistsError):
            return _make(root / f"{stamp}_{readable}_{secrets.token_hex(3)}")


def claim_folder(folder: Path) -> Path:
    """Make the folder the user named for one run.

    Raises:
        UserError: when it exists already.
    """
    try:
        return _make(folder)
    except FileExistsError as error:
        raise UserError(f"{folder} exists; name another output.folder or remove it") from error


def _make(folder: Path) -> Path:
    """Make a folder that must not exist, and what belongs in it."""
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
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def read_record(folder: Path, *, needs: Sequence[str] = ()) -> dict[str, Any]:
    """What ``run.json`` says of the run in ``folder``.

    ``needs`` are entries with entries of their own that must be there.

    Raises:
        UserError: when this is no run folder, one of another format, or one that lacks an entry.
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
    """Change some entries of ``run.json``; return all of them."""
    record = {**read_record(folder), **changes}
    write_json(folder / RECORD, record)
    return record


def write_alarms(folder: Path, where: str, alarms: Sequence[Alarm]) -> None:
    """Put alarms into ``run.json``, in place of earlier ones of ``where``.

    ``where`` is `TRAINING`, or the split whose captions raised them.
    """
    before = read_record(folder).get("alarms", {})
    entries = {**before, where: [alarm.to_json() for alarm in alarms]}
    if alarms or where in before:
        update_record(folder, alarms={name: listed for name, listed in entries.items() if listed})


def alarms_of(record: Mapping[str, Any]) -> dict[str, list[Alarm]]:
    """The alarms that ``run.json`` holds, by where they were raised.

    Raises:
        UserError: when it holds something else there.
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
    """``config.yaml`` of the run in ``folder`` as it stands, unchecked.

    Raises:
        UserError: it is missing, damaged, or no configuration.
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
    """The folder below ``root`` of a run of this very ``config`` that finished or can go on.

    So a job that is started again finds what it began.
    """
    for folder in sorted(file.parent for file in root.glob(f"*/{RECORD}")):
        with suppress(UserError):  # half written, or no run
            status = read_record(folder).get("status")
            is_saved = (folder / LAST_CHECKPOINT).is_file()
            of_use = status == "finished" or (is_saved and status in ("running", "interrupted"))
            if of_use and completed(read_config(folder)) == completed(config):
                return folder
    return None


def save_weights(folder: Path, decoder: nn.Module, encoder: Encoder | None = None) -> None:
    """Write the weights of ``decoder`` as ``checkpoints/best.safetensors``.

    Those of an ``encoder`` that learned with it go beside them, and its identity into ``run.json``.
    Should a kill leave one without the other, loading the run tells, and to resume it mends it.
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
        if LEARNED_IN in before:  # an earlier validation's
            before = json.loads(before[LEARNED_IN])["before"]
        told = json.dumps({"before": before})
        files[folder / LEARNED_ENCODER] = [half_file(encoder.body, {LEARNED_IN: told})]
        files[folder / RECORD] = [_json({**record, "encoder": described})]
    for file in files:
        remove_parts(file)  # of a training that was killed in the middle of it
    write_together(files)
    if earlier is not None and earlier != folder / LEARNED_ENCODER:
        earlier.unlink()  # a file of the user's with another ending


def load_weights(folder: Path, decoder: nn.Module) -> None:
    """Load what ``save_weights`` wrote, or a release in bytes, into a decoder of that architecture.

    Raises:
        UserError: when the file is missing, damaged or of another architecture.
    """
    from safetensors.torch import load_file

    from showtell.in_bytes import from_bytes

    path = folder / BEST_WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has not finished a validation; train it on")
    try:
        decoder.load_state_dict(from_bytes(load_file(path)))
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not fit {RECORD} beside it ({reason}); restore it from a copy"
        ) from error


def keep_encoder_weights(folder: Path, file: Path) -> None:
    """Copy the weights file of an encoder beside the decoder's weights."""
    kept = folder / BEST_WEIGHTS.with_name(f"encoder{file.suffix}")
    write_atomically(kept, file.read_bytes())


def encoder_weights(folder: Path) -> Path | None:
    """The file of the encoder's weights; None where they are published ones."""
    if (folder / LEARNED_ENCODER).is_file():  # the later of two, which a kill may leave
        return folder / LEARNED_ENCODER
    return next((folder / BEST_WEIGHTS.parent).glob("encoder.*"), None)


def captioner_files(folder: Path) -> list[Path]:
    """What captioning needs of a run folder (not an ensemble's), relative to it."""
    weights = encoder_weights(folder)
    expected = [EXPECTED] if (folder / EXPECTED).is_file() else []
    return [*DECODER, *expected, *([] if weights is None else [weights.relative_to(folder)])]


def save_statistics(folder: Path, split: Split, statistics: CaptionStatistics) -> None:
    """Write ``statistics-<split>.safetensors``: each metric's [I, K], and of what it is."""
    facts = {
        "image_ids": json.dumps(statistics.image_ids),
        "references_sha256": statistics.references_sha256,
        "signature": statistics.signature,
    }
    write_atomically(_statistics_file(folder, split), save(statistics.arrays, metadata=facts))


def has_statistics(folder: Path, split: Split) -> bool:
    """Whether an evaluation left what ``load_statistics`` reads."""
    return _statistics_file(folder, split).is_file()


def load_statistics(folder: Path, split: Split) -> CaptionStatistics:
    """What ``save_statistics`` wrote, if the scores beside it are still those it belongs to.

    Raises:
        UserError: when the split was not evaluated, or the file is damaged or out of date.
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
    """Whether ``scores-<split>.json`` holds these very scores."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return written["signature"] == signature and all(
            abs(written[name] - score) < SAME_SCORE for name, score in scores.items()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def describe_origin() -> dict[str, Any]:
    """Commit, versions and platform this process runs with."""
    versions = {package: version(package) for package in VERSIONED_PACKAGES}
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the source, ``+changes`` if the tree differs; ``unknown`` without git."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
