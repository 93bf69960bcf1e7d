"""What became of every job of a sweep, so that no started job is silently dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from showtell import runs
from showtell.comparison.settings import printable
from showtell.errors import UserError
from showtell.sweeps.record import RECORD as SWEEP
from showtell.sweeps.record import read_entries

_SAID_OF = {
    "failed": "failed",
    "interrupted": "was interrupted",
    "running": "is running, or was killed",
    "prepared": "was prepared and has not begun",
    "waiting": "waits for its turn",
    "gone": "finished, and its folder is gone",
    "unreadable": "cannot be used",
}
# What needs attention comes first.
_ORDER = ("failed", "gone", "unreadable", "interrupted", "running", "prepared", "waiting")
_LOG_BYTES, _LOG_LINES = 8192, 12


@dataclass(frozen=True, slots=True)
class Job:
    """A training that belongs to a sweep.

    ``name`` is its overrides, or its folder if they are not recorded. ``status`` is that of
    ``run.json``, or "waiting" for its turn, "gone" if its folder is missing, or "unreadable".
    ``log`` is a file in the sweep's folder.
    """

    name: str
    status: str
    cause: str | None
    folder: Path | None
    log: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether the job has a finished run."""
        return self.status == "finished"

    @property
    def sentence(self) -> str:
        """The job's name and what became of it, with the cause as far as known."""
        return f"{self.name} {self.fate}"

    @property
    def fate(self) -> str:
        """What became of the job, with the cause as far as known."""
        said = _SAID_OF.get(self.status, f"is {self.status}")
        return said + (f": {self.cause}" if self.cause else "")

    def unreadable(self, cause: str) -> Job:
        """This job with status "unreadable", because its folder is damaged in the way given."""
        return replace(self, status="unreadable", cause=printable(cause))


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` has a ``sweep.json`` or run folders."""
    return (folder / SWEEP).is_file() or any(folder.glob(f"*/{runs.RECORD}"))


def read_jobs(sweep: Path) -> list[Job]:
    """Every job that ``sweep.json`` names, then every run in the folder that belongs to none.

    A run folder overrules ``sweep.json``, because the run wrote it itself; ``sweep.json`` adds the
    jobs that could not write one.

    Raises:
        UserError: ``sweep.json`` is damaged.
    """
    jobs = [_launched(sweep, entry) for entry in read_entries(sweep / SWEEP)]
    known = {job.folder.resolve() for job in jobs if job.folder}
    folders = sorted(file.parent for file in sweep.glob(f"*/{runs.RECORD}"))
    return [*jobs, *(_found(folder) for folder in folders if folder.resolve() not in known)]


def by_urgency(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that did not finish, failures first."""
    places = {status: place for place, status in enumerate(_ORDER)}
    unfinished = [job for job in jobs if not job.finished]
    return sorted(unfinished, key=lambda job: places.get(job.status, len(places)))


def log_tail(job: Job) -> str:
    """The last lines of the log; empty without one."""
    if job.log is None or not job.log.is_file():
        return ""
    with job.log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(map(printable, text.splitlines()[-_LOG_LINES:]))


def _launched(sweep: Path, entry: Mapping[str, Any]) -> Job:
    overrides, status = entry.get("overrides"), printable(entry["status"])
    folder = _inside(sweep, entry.get("run"))
    name = " ".join(map(str, overrides)) if isinstance(overrides, list) else entry.get("number")
    job = Job(printable(str(name)), status, _text(entry.get("cause")), folder)
    job = replace(job, log=_inside(sweep, entry.get("log")))
    found = _found(folder) if folder and (folder / runs.RECORD).is_file() else None
    if found and found.finished:
        return replace(job, status="finished", cause=None)
    if status == "finished":
        return replace(job, status="gone", cause=_text(entry.get("run")))
    if status == "failed" or found is None:
        return job
    return replace(job, status=found.status, cause=job.cause or found.cause)


def _found(folder: Path) -> Job:
    """A job from its run folder alone."""
    try:
        record = runs.read_record(folder)
    except UserError as error:
        return Job(printable(folder.name), "", None, folder).unreadable(str(error))
    status = printable(str(record.get("status")))
    return Job(printable(folder.name), status, None, folder)


def _inside(sweep: Path, name: object) -> Path | None:
    """A path from ``sweep.json``; None if it leads out of the sweep's folder."""
    if not isinstance(name, str) or not name:
        return None
    path = sweep / name
    return path if path.resolve().is_relative_to(sweep.resolve()) else None


def _text(value: object) -> str | None:
    return printable(str(value)) if value else None
