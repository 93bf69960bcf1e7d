"""What became of each job: by sweep.json and by the run folders, which have the last word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from showtell.comparison.jobs import by_urgency, is_sweep, log_tail, read_jobs
from showtell.errors import UserError


def run(sweep: Path, name: str, status: str) -> None:
    (sweep / name).mkdir(parents=True)
    (sweep / name / "run.json").write_text(json.dumps({"format": 1, "status": status}))


def listed(sweep: Path, *jobs: dict[str, Any]) -> None:
    entries = [{"number": n, "overrides": [f"seed={n}"], **job} for n, job in enumerate(jobs)]
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "command": [], "jobs": entries}))


def told(sweep: Path) -> list[str]:
    return [job.sentence for job in by_urgency(read_jobs(sweep))]


def test_without_a_list_the_run_folders_tell_failures_first(tmp_path: Path) -> None:
    for status in ("running", "finished", "prepared", "failed", "interrupted", "pruned"):
        run(tmp_path, f"run_{status}", status)
    assert is_sweep(tmp_path)
    assert told(tmp_path) == [
        "run_failed failed",
        "run_interrupted was interrupted",
        "run_running is running, or was killed",
        "run_prepared was prepared and has not begun",
        "run_pruned is pruned",
    ]
    assert [job.name for job in read_jobs(tmp_path) if job.finished] == ["run_finished"]


def test_the_list_names_jobs_by_their_overrides_with_cause_and_log(tmp_path: Path) -> None:
    run(tmp_path, "b", "running")
    listed(
        tmp_path,
        {"status": "waiting", "run": "a", "log": ""},
        {"status": "failed", "run": "b", "cause": "killed by SIGKILL", "log": "logs/1.log"},
        {"status": "failed", "run": None, "cause": "exit status 1", "overrides": ["x=1", "y=2"]},
    )
    assert told(tmp_path) == [
        "seed=1 failed: killed by SIGKILL",
        "x=1 y=2 failed: exit status 1",
        "seed=0 waits for its turn",
    ]
    assert read_jobs(tmp_path)[1].log == tmp_path / "logs/1.log"


def test_what_a_run_says_of_itself_counts(tmp_path: Path) -> None:
    for name, status in {"a": "finished", "b": "finished", "c": "interrupted"}.items():
        run(tmp_path, name, status)
    listed(
        tmp_path,
        {"status": "running", "run": "a"},
        {"status": "failed", "run": "b", "cause": "exit status 1"},
        {"status": "running", "run": "c"},
        {"status": "finished", "run": "d"},
    )
    assert [job.status for job in read_jobs(tmp_path)] == [
        "finished",
        "finished",
        "interrupted",
        "gone",
    ]
    assert told(tmp_path)[0] == "seed=3 finished, and its folder is gone: d"


def test_a_run_that_is_in_no_list_is_not_lost(tmp_path: Path) -> None:
    run(tmp_path, "earlier", "failed")
    run(tmp_path, "a", "finished")
    listed(tmp_path, {"status": "finished", "run": "a"})
    assert [job.name for job in read_jobs(tmp_path)] == ["seed=0", "earlier"]


def test_a_damaged_run_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    run(tmp_path, "a", "finished")
    (tmp_path / "a" / "run.json").write_text("{")
    (sentence,) = told(tmp_path)
    assert sentence.startswith("a cannot be used: ")
    assert "run.json cannot be read" in sentence


def test_paths_that_lead_out_of_the_sweep_are_not_followed(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    run(tmp_path, "outside", "finished")
    (tmp_path / "secret.log").write_text("secret")
    listed(
        sweep,
        {"status": "failed", "run": "../outside", "log": "../secret.log"},
        {"status": "failed", "run": str(tmp_path / "outside"), "log": "/etc/passwd"},
        {"status": "failed", "run": 7, "log": ["x"], "cause": {"a": "\x1b[2J"}},
    )
    jobs = read_jobs(sweep)
    assert [(job.folder, job.log, job.status) for job in jobs] == [(None, None, "failed")] * 3
    assert [log_tail(job) for job in jobs] == ["", "", ""]
    assert "\x1b" not in jobs[2].sentence


def test_the_end_of_a_log_is_short_and_cannot_move_a_cursor(tmp_path: Path) -> None:
    (tmp_path / "long.log").write_bytes(b"x\n" * 9000 + b"\xff\x1b[31mred\n" + b"last\n")
    listed(tmp_path, {"status": "failed", "run": None, "log": "long.log"})
    (job,) = read_jobs(tmp_path)
    lines = log_tail(job).splitlines()
    assert len(lines) == 12
    assert lines[-2:] == ["\N{REPLACEMENT CHARACTER}?[31mred", "last"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"sweep\.json cannot be read"),
        ("[]", "lists no jobs in format 1"),
        ('{"format": 2, "jobs": []}', "lists no jobs in format 1"),
        ('{"format": 1, "jobs": [{}]}', "has a job without a status; restore it, or remove it"),
    ],
)
def test_a_damaged_list_is_told(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_jobs(tmp_path)
