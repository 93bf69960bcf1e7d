"""``trainer=ddp`` as a user meets it: one command, real processes, and their deaths."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Smoke
from ddp_program import STAGES
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from showtell.errors import UserError
from showtell.training.launch import _tell

PROGRAM = Path(__file__).parents[2] / "train.py"
SMALL_PROGRAM = Path(__file__).with_name("ddp_program.py")
LONGEST_START_SECONDS = 600
LONGEST_END_SECONDS = 30


def failure(rank: int, status: int) -> ProcessFailure:
    return ProcessFailure(local_rank=rank, pid=1, exitcode=status, error_file="none")


def test_the_death_of_a_process_is_told_in_one_sentence(tmp_path: Path) -> None:
    failed = ChildFailedError("train.py", {1: failure(1, -signal.SIGKILL), 0: failure(0, 143)})
    with pytest.raises(
        UserError, match=r"^process 1 of 2 \(counted from 0\) was killed by SIGKILL"
    ):
        _tell(failed, tmp_path, 2)


def test_a_process_that_said_why_is_not_talked_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: no such file\n")
    for failures, printed in (({0: failure(0, 3)}, ""), ({1: failure(1, 3)}, log.read_text())):
        with pytest.raises(SystemExit) as ended:
            _tell(ChildFailedError("train.py", failures), tmp_path, 2)
        assert ended.value.code == 3
        assert capsys.readouterr().err == printed


class Job:
    """A training of two processes that would take hours, and all processes that belong to it."""

    def __init__(self, process: subprocess.Popen[str], mark: str) -> None:
        self.process = process
        self._mark = f"SHOWTELL_TEST={mark}".encode()

    def members(self) -> dict[int, int | None]:
        """Process id -> its rank, None for the one that started them, of all that live."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile, or is somebody else's
                continue
            if self._mark in environment:
                ranks = [int(e[5:]) for e in environment if re.match(rb"RANK=\d", e)]
                found[int(folder.name)] = ranks[0] if ranks else None
        return found

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened in the training, which must live."""
        until = time.monotonic() + LONGEST_START_SECONDS
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)

    def check_end_after_death_of(self, rank: int) -> None:
        """All end in time, with one sentence, and nothing is left behind."""
        _, said = self.process.communicate(timeout=LONGEST_END_SECONDS)
        assert self.members() == {}
        assert self.process.returncode == 1
        assert f"error: process {rank} of 2 (counted from 0) was killed by SIGKILL" in said
        assert "Traceback" not in said


@contextmanager
def started(command: list[str], mark: Path) -> Iterator[Job]:
    """The job; what is left of it at the end is killed."""
    with subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "SHOWTELL_TEST": str(mark)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        job = Job(process, str(mark))
        try:
            yield job
        finally:
            for pid in job.members():
                os.kill(pid, signal.SIGKILL)


def train_for_long(smoke: Smoke, folder: Path) -> list[str]:
    words = ["trainer=ddp", "trainer.max_epochs=100000", f"output.folder={folder}"]
    return [str(PROGRAM), *smoke.overrides, *words]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_dead_processes_leave_none_behind(tmp_path: Path) -> None:
    moments = random.Random(0)
    for attempt in range(20):
        folder, rank, stage = tmp_path / str(attempt), attempt % 2, STAGES[attempt % len(STAGES)]
        folder.mkdir()
        with started([str(SMALL_PROGRAM), str(folder), stage], folder) as job:
            job.wait_for((folder / f"{rank}.pid").exists)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(int((folder / f"{rank}.pid").read_text()), signal.SIGKILL)
            job.check_end_after_death_of(rank)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dead_process_ends_a_run(smoke: Smoke, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(train_for_long(smoke, folder), folder) as job:
        job.wait_for((folder / "checkpoints" / "best.safetensors").exists)
        (pid,) = (pid for pid, rank in job.members().items() if rank == 1)
        os.kill(pid, signal.SIGKILL)
        job.check_end_after_death_of(1)
    assert json.loads((folder / "run.json").read_text())["status"] in ("failed", "interrupted")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    with started([str(SMALL_PROGRAM), str(tmp_path), STAGES[1]], tmp_path) as job:
        job.wait_for((tmp_path / "0.pid").exists)
        job.process.kill()
        until = time.monotonic() + LONGEST_END_SECONDS
        while job.members():
            assert time.monotonic() < until
            time.sleep(0.2)
