"""Several finished runs put into one folder that captions, is scored and is reported like a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from showtell import runs
from showtell.caption import Run, check_members, load_run, member_folders
from showtell.config import INJECTED, TARGET, check_node, compose
from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.vision.images import view_names

ENSEMBLE = "showtell.decoding.ensemble.Ensemble"


def gather(
    members: Sequence[Path],
    output: Path,
    *,
    search: dict[str, Any] | None,
    views: str | None = None,
) -> Path:
    """Make the run folder ``output`` of an ensemble: copies of ``members``, and what they share.

    It depends on nothing outside. An ensemble among the members stands for its own members. One
    member alone makes the same run with another search or other views.

    Args:
        members: run folders.
        output: the folder to make.
        search: the node of ``conf/decoding`` it captions with; None for that of the first member.
        views: what it looks at together; None for what the first member does.

    Raises:
        UserError: when a member cannot be loaded, when they differ in words or encoder, when
            there are no such views, or when the folder exists.
    """
    if output.exists():
        raise UserError(f"{output} exists; name another --output or remove it")
    folders = [each for member in members for each in member_folders(member)]
    loaded = [load_run(folder) for folder in folders]
    check_members(loaded)
    search = search or loaded[0].record["decoding"]
    views = views or "+".join(loaded[0].views)
    try:
        view_names(views)
    except ValueError as error:
        raise UserError(f"--views: {error}") from error
    config = _config(members[0], {"decoding": search, "views": views})
    runs.claim_folder(output)
    for number, run in enumerate(loaded, start=1):
        _copy(run.folder, output / runs.MEMBERS / str(number))
    loaded[0].vocabulary.save(output / runs.VOCABULARY)
    for weights in filter(None, map(runs.encoder_weights, members)):
        runs.keep_encoder_weights(output, weights)  # the same of all: see `check_members`
        break
    write_atomically(output / runs.CONFIG, config.encode())
    # Last: a folder without it is no run.
    runs.write_json(output / runs.RECORD, {**_record(loaded), "decoding": search, "views": views})
    return output


def _copy(member: Path, folder: Path) -> None:
    (folder / runs.BEST_WEIGHTS.parent).mkdir(parents=True)
    for file in runs.DECODER:
        shutil.copyfile(member / file, folder / file)


def _record(loaded: Sequence[Run]) -> dict[str, Any]:
    """What is true of all members, and each by its name."""
    first = loaded[0].record
    names = [run.record.get("name", run.folder.name) for run in loaded]
    alone = len(loaded) == 1
    return {
        "format": runs.FORMAT,
        "status": "finished",
        **runs.describe_origin(),
        "seed": first.get("seed") if alone else None,
        "training_seconds": sum(run.record.get("training_seconds", 0.0) for run in loaded),
        "data": first["data"],
        "encoder": first["encoder"],
        "text": first["text"],
        "model": first["model"] if alone else {TARGET: ENSEMBLE, "members": names},
        "model_sizes": {"vocabulary_size": len(loaded[0].vocabulary)},
        "members": names,
    }


def _config(member: Path, changes: dict[str, Any]) -> str:
    """The configuration of a member with some ``changes``, for `evaluate` to find its data.

    What an older version wrote differently stands as it would be now: it was for the training.
    """
    saved = runs.read_config(member)
    usual = compose([])
    fitting = {
        key: value
        for key, value in saved.items()
        if key in usual and not (key in INJECTED and check_node(key, value))
    }
    config = {**usual, **fitting, **changes}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
