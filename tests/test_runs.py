"""The run folder: nobody's but its run's, and a clear sentence when it cannot be read."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from showtell import runs
from showtell.errors import UserError


def test_five_hundred_runs_at_once_get_five_hundred_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(32) as pool:
        folders = list(pool.map(lambda _: runs.create_run_folder(tmp_path, "same"), range(500)))
    assert len(set(folders)) == 500
    assert all((folder / "checkpoints").is_dir() for folder in folders)


def test_a_name_cannot_leave_the_root(tmp_path: Path) -> None:
    folder = runs.create_run_folder(tmp_path / "runs", "../../up and/away")
    assert folder.parent == tmp_path / "runs"


def test_a_named_folder_is_never_reused(tmp_path: Path) -> None:
    runs.claim_folder(tmp_path / "mine")
    with pytest.raises(UserError, match="exists"):
        runs.claim_folder(tmp_path / "mine")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is not a run folder"),
        ("{", "cannot be read"),
        ("[]", "does not describe a run"),
        ('{"format": 99, "versions": {"showtell": "9.0"}}', r"format 99.*9\.0"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / runs.RECORD).write_text(content)
    with pytest.raises(UserError, match=sentence):
        runs.read_record(tmp_path)


def test_weights_come_back_and_others_are_refused(tmp_path: Path) -> None:
    folder = runs.claim_folder(tmp_path / "run")
    kept, other = nn.Linear(3, 2), nn.Linear(3, 2)
    with pytest.raises(UserError, match="has not finished a validation"):
        runs.load_weights(folder, other)
    runs.save_weights(folder, kept)
    runs.load_weights(folder, other)
    assert torch.equal(kept.weight, other.weight)
    with pytest.raises(UserError, match="does not fit"):
        runs.load_weights(folder, nn.Linear(4, 2))
    (folder / runs.BEST_WEIGHTS).write_bytes(b"torn")
    with pytest.raises(UserError, match="does not fit"):
        runs.load_weights(folder, other)


def test_writing_leaves_nothing_beside(tmp_path: Path) -> None:
    runs.write_json(tmp_path / "a.json", {"caption": "é"})
    runs.write_json(tmp_path / "a.json", {"caption": "ü"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"caption": "ü"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_record_is_changed_entry_by_entry(tmp_path: Path) -> None:
    runs.write_json(
        tmp_path / runs.RECORD, {"format": runs.FORMAT, "status": "prepared", "seed": 0}
    )
    assert runs.update_record(tmp_path, status="failed")["status"] == "failed"
    assert runs.read_record(tmp_path) == {"format": 1, "status": "failed", "seed": 0}


def test_the_origin_names_commit_and_versions() -> None:
    origin = runs.describe_origin()
    assert len(origin["commit"].removesuffix("+changes")) in (40, len("unknown"))
    assert set(origin["versions"]) >= {"python", "showtell", "torch", "lightning"}
