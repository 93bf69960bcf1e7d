"""Sweeps of fake jobs: each ends as it should, whatever happens to the others or to the driver."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from drive import drive

from showtell.errors import UserError
from showtell.sweeps import driver
from showtell.sweeps.driver import Limits

DRIVE = Path(__file__).with_name("drive.py")
# How each kind of failure is told.
CAUSES = {
    "exception": r"ValueError: the number is odd",
    "exit": r"exit status 1",
    "kill": r"killed by SIGKILL",
    "nan": r"The loss is nan at step 3: lower optim.lr",
    "memory": r"out of memory: MemoryError",
    "hang": r"wrote nothing for 4 s",
}
# Long enough for a healthy job on a busy machine.
LIMITS = Limits(total=None, silent=4.0)


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The slots are those of this test alone."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(driver, "_POLL_SECONDS", 0.02)
    return folder


def overrides(tmp_path: Path, count: int, *more: str) -> list[list[str]]:
    return [[f"seed={seed}", f"diary={tmp_path / 'diary'}", *more] for seed in range(count)]


def diary(tmp_path: Path) -> list[dict[str, Any]]:
    """The starts of all jobs, in their order."""
    pages = [json.loads(page.read_text()) for page in (tmp_path / "diary").glob("*.json")]
    return sorted(pages, key=lambda page: page["began"])


def recorded(sweep: Path) -> list[dict[str, Any]]:
    content = json.loads((sweep / "sweep.json").read_text())
    assert content["format"] == 1
    assert [job["number"] for job in content["jobs"]] == list(range(len(content["jobs"])))
    return list(content["jobs"])


def results(sweep: Path) -> list[int]:
    return sorted(json.loads(file.read_text())["result"] for file in sweep.glob("*/run.json"))


def most_at_once(pages: list[dict[str, Any]]) -> int:
    changes = [(page["began"], 1) for page in pages] + [(page["ended"], -1) for page in pages]
    level = highest = 0
    for _, change in sorted(changes):
        level += change
        highest = max(highest, level)
    return highest


def test_jobs_run_in_order_and_never_more_than_slots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = overrides(tmp_path, 6, "meet=2")  # the first ends when the second has begun
    assert drive(tmp_path / "sweep", jobs, slots=2) == ["6 of 6 jobs finished"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[1] for words in lines if words[0] == "started"] == [
        f"{n:04}_seed={n}" for n in range(6)
    ]
    assert most_at_once(diary(tmp_path)) == 2
    assert results(tmp_path / "sweep") == [0, 7, 14, 21, 28, 35]
    jobs = recorded(tmp_path / "sweep")
    assert {(job["status"], job["attempts"], job["cause"]) for job in jobs} == {
        ("finished", 1, None)
    }
    assert jobs[3]["run"] == "0003_seed=3"
    log = (tmp_path / "sweep" / jobs[3]["log"]).read_text().splitlines()
    assert log[0].startswith("$ env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=")
    assert "seed=3" in log[0]
    assert log[1] == "working on 3"


def test_a_job_sees_no_gpu_and_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showtell.sweeps.slots.available_cores", lambda: 8)
    drive(tmp_path / "sweep", overrides(tmp_path, 1), slots=3)
    (page,) = diary(tmp_path)
    assert page["environment"] == {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    }


def sabotaged(tmp_path: Path, count: int, kinds: dict[int, str]) -> list[list[str]]:
    mended = f"mended={tmp_path / 'mended'}"
    jobs = overrides(tmp_path, count, mended)
    return [[*job, f"kind={kinds.get(n, 'none')}"] for n, job in enumerate(jobs)]


def test_each_kind_of_failure_is_told_and_a_rerun_redoes_exactly_those(tmp_path: Path) -> None:
    kinds = dict(zip((1, 2, 4, 5, 7, 8), CAUSES, strict=True))
    jobs, sweep = sabotaged(tmp_path, 9, kinds), tmp_path / "sweep"
    lines = drive(sweep, jobs, slots=4, limits=LIMITS)
    assert lines[0] == "6 of 9 jobs failed:"
    assert lines[-1] == "3 of 9 jobs finished"
    for number, kind in kinds.items():
        job = recorded(sweep)[number]
        assert job["status"] == "failed"
        assert re.match(CAUSES[kind], job["cause"]), job["cause"]
        assert f"  {job['run']}: {job['cause']}" in lines
        assert f"    {sweep / job['log']}" in lines
    hung = next(number for number, kind in kinds.items() if kind == "hang")
    assert "Current thread" in (sweep / recorded(sweep)[hung]["log"]).read_text()
    assert results(sweep) == [7 * n for n in range(9)]

    (tmp_path / "mended").touch()
    before = len(diary(tmp_path))
    # In another order, as another command line gives them.
    shuffled = [random.Random(0).sample(job, len(job)) for job in reversed(jobs)]
    assert drive(sweep, shuffled, slots=4, limits=LIMITS) == ["9 of 9 jobs finished"]
    assert sorted(int(page["seed"]) for page in diary(tmp_path)[before:]) == sorted(kinds)
    assert [job["attempts"] for job in recorded(sweep)] == [1 + (n in kinds) for n in range(9)]

    drive(sweep, jobs)
    assert len(diary(tmp_path)) == before + len(kinds)


def test_a_job_that_takes_too_long_may_save_its_state_and_goes_on(tmp_path: Path) -> None:
    sweep, jobs = tmp_path / "sweep", sabotaged(tmp_path, 1, {0: "hang"})
    lines = drive(sweep, jobs, limits=Limits(total=3.0, silent=None))
    assert "took longer than 3 s" in lines[1]
    assert lines[3].endswith(f"to begin anew, delete {sweep / '0000_seed=0'}")
    (tmp_path / "mended").touch()
    drive(sweep, jobs)
    assert [page["resumed"] for page in diary(tmp_path)] == [False, True]


def test_one_that_heeds_no_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "GRACE_SECONDS", 0.2)
    sweep, jobs = tmp_path / "sweep", sabotaged(tmp_path, 2, {0: "deaf"})
    lines = drive(sweep, jobs, limits=LIMITS)
    assert "wrote nothing for 4 s" in lines[1]
    assert lines[-1] == "1 of 2 jobs finished"
    with pytest.raises(ProcessLookupError):
        os.kill(diary(tmp_path)[0]["pid"], 0)


def test_a_deleted_run_is_run_again(tmp_path: Path) -> None:
    sweep, jobs = tmp_path / "sweep", overrides(tmp_path, 2)
    drive(sweep, jobs)
    shutil.rmtree(sweep / "0001_seed=1")
    drive(sweep, jobs)
    assert [page["seed"] for page in diary(tmp_path)[2:]] == ["1"]


def start(tmp_path: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    """The driver in a process of its own, on two slots."""
    command = [sys.executable, str(DRIVE), str(tmp_path / name), str(tmp_path / "locks"), "2"]
    return subprocess.Popen(
        [*command, *words], stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""}
    )


def test_two_sweeps_at_once_share_the_slots(tmp_path: Path) -> None:
    words = ("4", f"diary={tmp_path / 'diary'}", "seconds=0.1")
    drivers = [start(tmp_path, name, *words) for name in ("one", "two")]
    assert [process.wait(60) for process in drivers] == [0, 0]
    pages = diary(tmp_path)
    assert len(pages) == 8
    assert most_at_once(pages) <= 2
    assert results(tmp_path / "one") == results(tmp_path / "two") == [0, 7, 14, 21]


def test_one_sweep_has_one_driver(tmp_path: Path) -> None:
    words = ("2", f"diary={tmp_path / 'diary'}", "seconds=60")
    process = start(tmp_path, "sweep", *words)
    try:
        while not (tmp_path / "sweep" / "sweep.json").exists():
            time.sleep(0.02)
        with pytest.raises(UserError, match="is being run by another process"):
            drive(tmp_path / "sweep", overrides(tmp_path, 2))
    finally:
        process.terminate()
        assert process.wait(60) == 143


def kill_at_random(tmp_path: Path, *, jobs: int, kills: int, seed: int) -> None:
    """A driver killed so often loses no job and runs none again that had finished."""
    source = random.Random(seed)
    words = (str(jobs), f"diary={tmp_path / 'diary'}", "seconds=0.1")
    for _ in range(kills):
        process = start(tmp_path, "sweep", *words)
        time.sleep(source.uniform(0.0, 1.0))
        process.send_signal(source.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        process.wait(60)
    assert start(tmp_path, "sweep", *words).wait(120) == 0
    pages = diary(tmp_path)
    assert {job["status"] for job in recorded(tmp_path / "sweep")} == {"finished"}
    assert results(tmp_path / "sweep") == [7 * n for n in range(jobs)]
    ends = Counter(page["seed"] for page in pages if "ended" in page)
    assert set(ends.values()) == {1}
    # Whoever ran a job again began after whoever had it before.
    for seed in map(str, range(jobs)):
        of_one = [page for page in pages if page["seed"] == seed]
        assert all("ended" not in page for page in of_one[:-1])


def test_a_killed_driver_loses_no_job_and_runs_none_twice(tmp_path: Path) -> None:
    kill_at_random(tmp_path, jobs=6, kills=3, seed=0)


@pytest.mark.slow
def test_a_driver_killed_twenty_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, jobs=40, kills=20, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_of_two_hundred_fail_and_the_others_do_not_notice(tmp_path: Path) -> None:
    places = random.Random(2).sample(range(200), 60)
    kinds = dict(zip(places, [kind for kind in CAUSES for _ in range(10)], strict=True))
    jobs, sweep = sabotaged(tmp_path, 200, kinds), tmp_path / "sweep"
    lines = drive(sweep, jobs, slots=4, limits=LIMITS)
    assert lines[0] == "60 of 200 jobs failed:"
    for job in recorded(sweep):
        kind = kinds.get(job["number"])
        assert job["status"] == ("failed" if kind else "finished")
        if kind:
            assert re.match(CAUSES[kind], job["cause"]), job["cause"]
        else:
            record = json.loads((sweep / job["run"] / "run.json").read_text())
            assert record["result"] == 7 * job["number"]  # what a job gives alone
    (tmp_path / "mended").touch()
    assert drive(sweep, jobs, slots=4, limits=LIMITS) == ["200 of 200 jobs finished"]
    assert sorted(int(page["seed"]) for page in diary(tmp_path)[200:]) == sorted(kinds)
