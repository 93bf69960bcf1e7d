"""``sweep.json``: the jobs of a sweep and their status.

The run folder of a job has the last word about it, because the job writes it itself; ``sweep.json``
adds what a run folder cannot know: jobs without one, causes of failure, logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from showtell import runs
from showtell.errors import UserError
from showtell.locks import open_locked

FORMAT = 1
RECORD = "sweep.json"
# Longest name of a run folder; file systems allow 255 bytes.
LONGEST_NAME = 120

Status = Literal["waiting", "running", "finished", "failed"]


@dataclass(slots=True)
class Job:
    """One training of a sweep.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: the Hydra overrides it is started with.
        status: its status; an interrupted job is ``waiting``.
        run: the name of its run folder in the sweep's folder.
        cause: why it failed, in a sentence.
        log: the file with its output, relative to the sweep's folder.
        seconds: how long its last attempt took.
        attempts: how often it was started.
    """

    number: int
    overrides: list[str]
    status: Status = "waiting"
    run: str | None = None
    cause: str | None = None
    log: str = ""
    seconds: float | None = None
    attempts: int = 0


@dataclass(slots=True)
class Sweep:
    """A sweep's folder and its jobs."""

    folder: Path
    command: list[str]
    jobs: list[Job] = field(default_factory=list)

    def add(self, overrides: Sequence[str], telling: Sequence[str]) -> Job:
        """The job with these overrides, in any order; a new one if there is none.

        ``telling`` are the overrides that distinguish it from the others; they name its folder.
        """
        for job in self.jobs:
            if sorted(job.overrides) == sorted(overrides):
                return job
        number = len(self.jobs)
        name = re.sub(r"[^\w.=+-]+", "_", "_".join([f"{number:04}", *telling]))[:LONGEST_NAME]
        job = Job(number, list(overrides), run=name, log=f"logs/{number:04}.log")
        self.jobs.append(job)
        return job

    def settle(self, job: Job) -> None:
        """Correct the status of ``job`` by what its own run folder says."""
        if self._has_finished(job):
            job.status, job.cause = "finished", None
        elif job.status in ("running", "finished"):  # the driver was killed, or the run deleted
            job.status = "waiting"

    def _has_finished(self, job: Job) -> bool:
        try:
            return runs.read_record(self.run_folder(job)).get("status") == "finished"
        except UserError:
            return False

    def run_folder(self, job: Job) -> Path:
        """The folder that is, or will be, the run of ``job``."""
        # Never another place, whatever ``sweep.json`` says: the folder may be deleted.
        name = job.run or ""
        is_own = re.fullmatch(rf"{job.number:04}[\w.=+-]*", name)
        return self.folder / (name if is_own else f"{job.number:04}")

    def log_file(self, job: Job) -> Path:
        """The file with the output of ``job``."""
        return self.folder / "logs" / f"{job.number:04}.log"

    def save(self) -> None:
        """Write ``sweep.json`` atomically and durably."""
        content = {"format": FORMAT, "command": self.command, "jobs": [*map(asdict, self.jobs)]}
        runs.write_json(self.folder / RECORD, content)


@contextmanager
def open_sweep(folder: Path, command: Sequence[str]) -> Iterator[Sweep]:
    """Open the sweep in ``folder``, as earlier runs of it left it, for this process alone.

    Raises:
        UserError: another process has it open, or ``sweep.json`` is damaged or of another format.
    """
    lock = open_locked(folder / ".lock")
    if lock is None:
        raise UserError(
            f"{folder} is being run by another process; wait for its end, or give another "
            "output.root"
        )
    with lock:
        sweep = Sweep(folder, list(command), _read_jobs(folder / RECORD))
        for job in sweep.jobs:
            sweep.settle(job)
        yield sweep


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The jobs of a ``sweep.json``, each with a ``status``; empty if there is no such file.

    Raises:
        UserError: the file is damaged or of another format.
    """
    remedy = f"restore it, or remove it: the {runs.RECORD} of each run then tells"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    jobs = content.get("jobs") if isinstance(content, dict) else None
    if not isinstance(jobs, list) or content.get("format") != FORMAT:
        raise UserError(f"{path} lists no jobs in format {FORMAT}; {remedy}")
    for entry in jobs:
        if not isinstance(entry, dict) or not isinstance(entry.get("status"), str):
            raise UserError(f"{path} has a job without a status; {remedy}")
    return jobs


def _read_jobs(path: Path) -> list[Job]:
    try:
        return [Job(**entry) for entry in read_entries(path)]
    except TypeError as error:  # an entry lacks a key, or has an unknown one
        raise UserError(f"{path} cannot be read ({error}); restore it from a copy") from error
