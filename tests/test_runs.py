"""The run folder: nobody's but its run's, and a clear sentence when it cannot be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn

from showtell import runs
from showtell.errors import UserError
from showtell.metrics import score_captions


def test_five_hundred_runs_at_once_get_five_hundred_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(32) as pool:
        folders = list(pool.map(lambda _: runs.create_run_folder(tmp_path, "same"), range(500)))
    assert len(set(folders)) == 500
    assert all((folder / "checkpoints").is_dir() for folder in folders)


def test_five_hundred_runs_of_four_processes_get_five_hundred_folders(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from showtell.runs import create_run_folder\n"
        "for _ in range(125): print(create_run_folder(Path(sys.argv[1]), 'same'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    folders = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert len(folders) == len(set(folders)) == 500
    assert {str(folder) for folder in tmp_path.iterdir()} == set(folders)


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


def test_a_file_name_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    runs.write_json(tmp_path / "captions.json", [name, "café"])
    text = (tmp_path / "captions.json").read_text(encoding="utf-8")
    assert json.loads(text) == [name, "café"]
    assert "café" in text


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


SCORES = score_captions(
    {"a": "a dog runs", "b": "two cats"},
    {"a": ["the dog runs", "a dog"], "b": ["two cats sit", "cats"]},
    ["BLEU", "CIDEr"],
    context={"split": "val"},
)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A folder with the two files that an evaluation leaves."""
    runs.save_statistics(tmp_path, "val", SCORES.statistics)
    runs.write_json(tmp_path / "scores-val.json", SCORES.to_json())
    return tmp_path


def test_statistics_come_back_as_they_were(scored: Path) -> None:
    back = runs.load_statistics(scored, "val")
    assert (back.image_ids, back.signature) == (("a", "b"), SCORES.signature)
    assert back.references_sha256 == SCORES.statistics.references_sha256
    assert back.scores == SCORES.statistics.scores
    assert set(back.arrays) == {"BLEU", "CIDEr"}


def test_a_split_that_was_not_evaluated_is_named_with_the_remedy(scored: Path) -> None:
    remedy = r"missing: run `showtell evaluate .* --split test`, which writes it"
    with pytest.raises(UserError, match=remedy):
        runs.load_statistics(scored, "test")


def rewritten(scored: Path, arrays: dict[str, Any], facts: dict[str, str] | None = None) -> Path:
    statistics = SCORES.statistics
    known = {
        "image_ids": json.dumps(statistics.image_ids),
        "references_sha256": statistics.references_sha256,
        "signature": statistics.signature,
    }
    (scored / "statistics-val.safetensors").write_bytes(
        save(arrays, metadata=known if facts is None else facts)
    )
    return scored


@pytest.mark.parametrize("size", [0, 7, 100, -8])
def test_damaged_statistics_are_refused(scored: Path, size: int) -> None:
    path = scored / "statistics-val.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cannot be read .*showtell evaluate"):
        runs.load_statistics(scored, "val")


@pytest.mark.parametrize(
    ("arrays", "facts"),
    [
        (SCORES.statistics.arrays, {}),
        (SCORES.statistics.arrays, {"image_ids": "{", "references_sha256": "", "signature": ""}),
        ({**SCORES.statistics.arrays, "BLUE": np.ones((2, 2))}, None),
        ({"CIDEr": np.ones((3, 2))}, None),
        ({"CIDEr": np.ones(2)}, None),
        ({"BLEU": np.ones((2, 5))}, None),
    ],
)
def test_what_are_no_statistics_is_refused(
    scored: Path, arrays: dict[str, Any], facts: dict[str, str] | None
) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*showtell evaluate"):
        runs.load_statistics(rewritten(scored, arrays, facts), "val")


@pytest.mark.parametrize("change", [{"BLEU-1": 0.1}, {"signature": "another"}, None])
def test_statistics_of_other_scores_are_refused(
    scored: Path, change: dict[str, object] | None
) -> None:
    path = scored / "scores-val.json"
    path.write_text(json.dumps({**SCORES.to_json(), **change}) if change else "{")
    with pytest.raises(UserError, match=r"does not belong to scores-val\.json"):
        runs.load_statistics(scored, "val")


def test_no_number_is_not_a_statistic(scored: Path) -> None:
    arrays = {**SCORES.statistics.arrays, "CIDEr": np.full((2, 2), np.nan)}
    with pytest.raises(UserError, match="does not belong to"):
        runs.load_statistics(rewritten(scored, arrays), "val")
