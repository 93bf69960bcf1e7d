"""The run folder: created exclusively, described by ``run.json``, loadable anywhere.

config.yaml              the configuration as composed
run.json                 what the run is: data, encoder, model, commit, versions, status
vocabulary.json          the words
metrics.csv              the curves
checkpoints/best.safetensors   weights of the best validation, for everyone
checkpoints/last.ckpt          state of the training, for ``resume`` on the machine that made it
captions-<split>.json, scores-<split>.json
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from showtell.errors import UserError

FORMAT = 1
RECORD = "run.json"
CONFIG = "config.yaml"
VOCABULARY = "vocabulary.json"
BEST_WEIGHTS = Path("checkpoints/best.safetensors")
LAST_CHECKPOINT = Path("checkpoints/last.ckpt")
VERSIONED_PACKAGES = ("showtell", "torch", "torchvision", "lightning", "hydra-core", "timm")


def create_run_folder(root: Path, name: str) -> Path:
    """Make a new folder below ``root``; nobody else, however quick, gets the same one."""
    root.mkdir(parents=True, exist_ok=True)
    readable = re.sub(r"[^\w.=+-]+", "_", name)
    while True:
        stamp = datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S")
        folder = root / f"{stamp}_{readable}_{secrets.token_hex(3)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        (folder / BEST_WEIGHTS.parent).mkdir()
        return folder


def claim_folder(folder: Path) -> Path:
    """Make the folder the user named for one run.

    Raises:
        UserError: when it exists already.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{folder} exists; name another output.folder or remove it") from error
    (folder / BEST_WEIGHTS.parent).mkdir()
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` so that a kill leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON atomically."""
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, text.encode())


def read_record(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says of the run in ``folder``.

    Raises:
        UserError: when this is no run folder, or one of another format.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not a run folder: it has no {RECORD}; give the folder that "
            "`python train.py` printed after `run:`"
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
    return dict(record)


def update_record(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change some entries of ``run.json``; return all of them."""
    record = {**read_record(folder), **changes}
    write_json(folder / RECORD, record)
    return record


def save_weights(folder: Path, decoder: nn.Module) -> None:
    """Write the weights of ``decoder`` as ``checkpoints/best.safetensors``."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in decoder.state_dict().items()}
    write_atomically(folder / BEST_WEIGHTS, save(tensors))


def load_weights(folder: Path, decoder: nn.Module) -> None:
    """Load what ``save_weights`` wrote into a decoder of the same architecture.

    Raises:
        UserError: when the file is missing, damaged or of another architecture.
    """
    path = folder / BEST_WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has not finished a validation; train it on")
    try:
        decoder.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit {RECORD} beside it ({reason})") from error


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
