"""Runs the jobs of a sweep, as many at once as there are slots, whatever becomes of each."""

from __future__ import annotations

import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from showtell import runs
from showtell.config import quoted
from showtell.locks import open_locked
from showtell.sweeps.causes import cause_of
from showtell.sweeps.process import JobProcess
from showtell.sweeps.record import Job, Sweep
from showtell.sweeps.slots import Slot

_POLL_SECONDS = 0.1
# A training saves its state within ten seconds; then there is no more waiting.
GRACE_SECONDS = 20.0
# What a training itself writes in its folder.
SIGNS_OF_LIFE = ("metrics.csv", "run.json", "checkpoints")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a job is given up, in seconds; None: never.

    Attributes:
        total: since its start.
        silent: since it wrote anything.
    """

    total: float | None
    silent: float | None


@dataclass(slots=True)
class _Running:
    job: Job
    process: JobProcess
    given_up: str | None = None  # why we end it
    kill_at: float | None = None
    look_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Driver:
    """How to run jobs.

    Attributes:
        sweep: they belong to; its record is kept up to date.
        program: what starts a job, given its overrides.
        slots: where they run.
        limits: of each.
        signs: folders, beside its own, whose changes show that a job is alive: it may be filling
            the feature store, or wait for another that does.
        tell: takes each line of progress.
    """

    sweep: Sweep
    program: Sequence[str]
    slots: Sequence[Slot]
    limits: Limits
    signs: Sequence[Path]
    tell: Callable[[str], None]

    def run(self, jobs: Sequence[Job]) -> None:
        """Run those of ``jobs`` that are not finished; each has an outcome afterwards.

        Raises:
            UserError: the record or a log cannot be written.
            BaseException: whatever ends the sweep early. Its jobs are told to end first; run again,
                they go on where they were.
        """
        # By number, since two combinations of a command may be one job.
        waiting = deque({job.number: job for job in jobs if job.status != "finished"}.values())
        for job in waiting:
            job.status, job.cause = "waiting", None
        self.sweep.save()
        running: list[_Running] = []
        told_to_wait = False
        try:
            while waiting or running:
                self._start(waiting, running)
                if waiting and not running and not told_to_wait:
                    self.tell(f"waiting: other sweeps have all {len(self.slots)} slots")
                    told_to_wait = True
                time.sleep(_POLL_SECONDS)
                self._collect(running)
        finally:
            self._interrupt(running)

    def _start(self, waiting: deque[Job], running: list[_Running]) -> None:
        """Start as many jobs as there are free slots."""
        for slot in self.slots:
            if not waiting:
                return
            slot_lock = slot.take()
            if slot_lock is None:
                continue
            with slot_lock:  # the job keeps open what we close
                job = waiting.popleft()
                log = open_locked(self.sweep.log_file(job))
                if log is None:  # of an earlier start, and not dead yet
                    waiting.append(job)
                    continue
                with log:
                    self.sweep.settle(job)  # a process of an earlier start may have finished it
                    if job.status != "finished":
                        self._start_one(job, slot, log, slot_lock, running)

    def _start_one(
        self, job: Job, slot: Slot, log: BinaryIO, slot_lock: BinaryIO, running: list[_Running]
    ) -> None:
        job.status, job.seconds, job.attempts = "running", None, job.attempts + 1
        self.sweep.save()
        # Not all of the run folder: W&B's own process writes there, whatever becomes of ours.
        folder = self.sweep.run_folder(job)
        signs = [*(folder / name for name in SIGNS_OF_LIFE), *self.signs]
        try:
            process = JobProcess(
                self._command(job), slot.environment, log=log, slot_lock=slot_lock, signs=signs
            )
        except OSError as error:  # no memory, no more processes: later jobs may have more luck
            self._fail(job, f"could not be started ({error.strerror})")
            return
        running.append(_Running(job, process))
        self.tell(f"started   {job.run} on {slot.name}")

    def _command(self, job: Job) -> list[str]:
        """Go on with the run there is, or begin it."""
        folder = self.sweep.run_folder(job)
        if (folder / runs.LAST_CHECKPOINT).is_file():
            return [*self.program, f"resume={quoted(str(folder))}"]
        if folder.exists():  # it came to nothing: no state was ever saved
            shutil.rmtree(folder)
        return [*self.program, *job.overrides, f"output.folder={quoted(str(folder))}"]

    def _collect(self, running: list[_Running]) -> None:
        """Note those that have ended, give up those beyond their limits."""
        for entry in [*running]:
            status = entry.process.poll()
            if status is None:
                self._watch(entry)
                continue
            running.remove(entry)
            self._note_end(entry)
            if entry.job.status != "finished":
                log, start = entry.process.log, entry.process.log_start
                self._fail(entry.job, entry.given_up or cause_of(status, log, start=start))
            else:
                self.tell(f"finished  {entry.job.run} in {duration(entry.process.seconds)}")

    def _note_end(self, entry: _Running) -> None:
        """The outcome by the run's own record, or else ``waiting``."""
        entry.job.seconds = round(entry.process.seconds, 1)
        self.sweep.settle(entry.job)
        self.sweep.save()

    def _fail(self, job: Job, cause: str) -> None:
        job.status, job.cause = "failed", cause
        self.sweep.save()
        self.tell(f"FAILED    {job.run}: {cause}")

    def _watch(self, entry: _Running) -> None:
        """Begin to end a job beyond its limits; end the one that did not heed."""
        now, process, limits = time.monotonic(), entry.process, self.limits
        if entry.kill_at is not None:
            if now >= entry.kill_at:
                process.kill()
        elif limits.total is not None and process.seconds > limits.total:
            self._give_up(entry, signal.SIGTERM, f"took longer than {duration(limits.total)}")
        elif limits.silent is not None and now >= entry.look_at:
            entry.look_at = now + limits.silent / 20
            if process.silent_seconds() > limits.silent:
                # The abort has Python print where every thread is.
                why = f"wrote nothing for {duration(limits.silent)}; its log ends with its stack"
                self._give_up(entry, signal.SIGABRT, why)

    def _give_up(self, entry: _Running, number: signal.Signals, why: str) -> None:
        entry.given_up, entry.kill_at = why, time.monotonic() + GRACE_SECONDS
        entry.process.signal(number)

    def _interrupt(self, running: list[_Running]) -> None:
        """End what still runs: as a rule nothing."""
        if running:
            self.tell(
                f"interrupted: ending {len(running)} jobs; the same command goes on with them"
            )
        try:
            for entry in running:
                entry.process.signal(signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and any(e.process.poll() is None for e in running):
                time.sleep(_POLL_SECONDS)
        finally:
            for entry in running:
                entry.process.kill()
                self._note_end(entry)


def summary(sweep: Sweep, jobs: Sequence[Job]) -> list[str]:
    """What became of ``jobs``, failures first."""
    failed = [job for job in jobs if job.status == "failed"]
    lines = [f"{len(failed)} of {len(jobs)} jobs failed:"] if failed else []
    for job in failed:
        lines += [f"  {job.run}: {job.cause}", f"    {sweep.log_file(job)}"]
        folder = sweep.run_folder(job)
        if (folder / runs.LAST_CHECKPOINT).is_file():  # from which it may fail for ever
            lines.append(f"    goes on from its last checkpoint; to begin anew, delete {folder}")
    return [*lines, f"{len(jobs) - len(failed)} of {len(jobs)} jobs finished"]


def duration(seconds: float) -> str:
    """For people: 12 s, 34 min, 5.6 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
