"""What became of every job of a sweep: nothing that was started is dropped in silence."""

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
# What needs somebody to look at it comes first.
_ORDER = ("failed", "gone", "unreadable", "interrupted", "running", "prepared", "waiting")
_LOG_BYTES, _LOG_LINES = 8192, 12


@dataclass(frozen=True, slots=True)
class Job:
    """A training that a sweep was to do.

    ``name`` are its overrides, or its folder where nobody wrote them down. ``status`` is that of
    ``run.json``, "waiting" for a turn, "gone" without its folder, or "unreadable". ``log`` lies in
    the sweep's folder.
    """

    name: str
    status: str
    cause: str | None
    folder: Path | None
    log: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether there is a run to count."""
        return self.status == "finished"

    @property
    def sentence(self) -> str:
        """Who, what, and why as far as it is known."""
        return f"{self.name} {self.fate}"

    @property
    def fate(self) -> str:
        """What became of it, and why."""
        said = _SAID_OF.get(self.status, f"is {self.status}")
        return said + (f": {self.cause}" if self.cause else "")

    def unreadable(self, cause: str) -> Job:
        """The same, with what is wrong with its folder."""
        return replace(self, status="unreadable", cause=printable(cause))


def is_sweep(folder: Path) -> bool:
    """Whether there are jobs to read."""
    return (folder / SWEEP).is_file() or any(folder.glob(f"*/{runs.RECORD}"))


def read_jobs(sweep: Path) -> list[Job]:
    """Every job that ``sweep.json`` names, then every run in the folder that belongs to none.

    What a run's own folder says of it counts, for it wrote that itself; the launcher knows of
    those that could not.

    Raises:
        UserError: ``sweep.json`` is damaged.
    """
    jobs = [_launched(sweep, entry) for entry in read_entries(sweep / SWEEP)]
    known = {job.folder.resolve() for job in jobs if job.folder}
    folders = sorted(file.parent for file in sweep.glob(f"*/{runs.RECORD}"))
    return [*jobs, *(_found(folder) for folder in folders if folder.resolve() not in known)]


def by_urgency(jobs: Sequence[Job]) -> list[Job]:
    """Those that did not finish, failures first."""
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
    """A run as its own folder tells it."""
    try:
        record = runs.read_record(folder)
    except UserError as error:
        return Job(printable(folder.name), "", None, folder).unreadable(str(error))
    status = printable(str(record.get("status")))
    return Job(printable(folder.name), status, None, folder)


def _inside(sweep: Path, name: object) -> Path | None:
    """A path of ``sweep.json``, unless it leads out of the sweep's folder."""
    if not isinstance(name, str) or not name:
        return None
    path = sweep / name
    return path if path.resolve().is_relative_to(sweep.resolve()) else None


def _text(value: object) -> str | None:
    return printable(str(value)) if value else None
