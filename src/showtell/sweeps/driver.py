"""Runs the jobs of a sweep, as many at once as there are slots; failures do not stop the others."""

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
# Time between asking a job to end and killing it; a training saves its state within ten seconds.
GRACE_SECONDS = 20.0
# What a training itself writes in its folder.
SIGNS_OF_LIFE = ("metrics.csv", "run.json", "checkpoints")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a job is given up, in seconds; None: never.

    Attributes:
        total: time since its start.
        silent: time since it last wrote anything.
    """

    total: float | None
    silent: float | None


@dataclass(slots=True)
class _Running:
    job: Job
    process: JobProcess
    given_up: str | None = None  # why it is being ended
    kill_at: float | None = None
    look_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Driver:
    """Runs the jobs of a sweep.

    Attributes:
        sweep: the sweep that the jobs belong to; its record is kept up to date.
        program: the command that starts a job when its overrides are appended.
        slots: where the jobs run.
        limits: time limits of each job.
        signs: folders, besides its own, whose changes show that a job is alive: it may be filling
            the feature store, or waiting for another that does.
        tell: called with each line of progress.
    """

    sweep: Sweep
    program: Sequence[str]
    slots: Sequence[Slot]
    limits: Limits
    signs: Sequence[Path]
    tell: Callable[[str], None]

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the ``jobs`` that are not finished; afterwards each is finished or failed.

        Raises:
            UserError: the record or a log cannot be written.
            BaseException: whatever ends the sweep early. Its jobs are asked to end first; run
                again, they resume.
        """
        # By number, because two combinations of overrides may be the same job.
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
                if log is None:  # its process of an earlier start is still alive
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
        # Not the whole run folder: W&B's own process writes there even if the training hangs.
        folder = self.sweep.run_folder(job)
        signs = [*(folder / name for name in SIGNS_OF_LIFE), *self.signs]
        try:
            process = JobProcess(
                self._command(job), slot.environment, log=log, slot_lock=slot_lock, signs=signs
            )
        except OSError as error:  # no memory or processes left: later jobs may succeed
            self._fail(job, f"could not be started ({error.strerror})")
            return
        running.append(_Running(job, process))
        self.tell(f"started   {job.run} on {slot.name}")

    def _command(self, job: Job) -> list[str]:
        """The command that resumes the job's run if it has a checkpoint, or else starts it."""
        folder = self.sweep.run_folder(job)
        if (folder / runs.LAST_CHECKPOINT).is_file():
            return [*self.program, f"resume={quoted(str(folder))}"]
        if folder.exists():  # useless: no state was ever saved
            shutil.rmtree(folder)
        return [*self.program, *job.overrides, f"output.folder={quoted(str(folder))}"]

    def _collect(self, running: list[_Running]) -> None:
        """Record the jobs that have ended; give up those beyond their limits."""
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
        """Set the job's status from the run's own record: finished, or else waiting."""
        entry.job.seconds = round(entry.process.seconds, 1)
        self.sweep.settle(entry.job)
        self.sweep.save()

    def _fail(self, job: Job, cause: str) -> None:
        job.status, job.cause = "failed", cause
        self.sweep.save()
        self.tell(f"FAILED    {job.run}: {cause}")

    def _watch(self, entry: _Running) -> None:
        """Ask a job beyond its limits to end; kill it once its grace period is over."""
        now, process, limits = time.monotonic(), entry.process, self.limits
        if entry.kill_at is not None:
            if now >= entry.kill_at:
                process.kill()
        elif limits.total is not None and process.seconds > limits.total:
            self._give_up(entry, signal.SIGTERM, f"took longer than {duration(limits.total)}")
        elif limits.silent is not None and now >= entry.look_at:
            entry.look_at = now + limits.silent / 20
            if process.silent_seconds() > limits.silent:
                # On SIGABRT Python's fault handler prints the stack of every thread.
                why = f"wrote nothing for {duration(limits.silent)}; its log ends with its stack"
                self._give_up(entry, signal.SIGABRT, why)

    def _give_up(self, entry: _Running, number: signal.Signals, why: str) -> None:
        entry.given_up, entry.kill_at = why, time.monotonic() + GRACE_SECONDS
        entry.process.signal(number)

    def _interrupt(self, running: list[_Running]) -> None:
        """End the jobs that still run, if the sweep ends early."""
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
    """Lines that say what became of ``jobs``, failures first."""
    failed = [job for job in jobs if job.status == "failed"]
    lines = [f"{len(failed)} of {len(jobs)} jobs failed:"] if failed else []
    for job in failed:
        lines += [f"  {job.run}: {job.cause}", f"    {sweep.log_file(job)}"]
        folder = sweep.run_folder(job)
        if (folder / runs.LAST_CHECKPOINT).is_file():  # resuming from it may fail each time
            lines.append(f"    goes on from its last checkpoint; to begin anew, delete {folder}")
    return [*lines, f"{len(jobs) - len(failed)} of {len(jobs)} jobs finished"]


def duration(seconds: float) -> str:
    """A duration as text: 12 s, 34 min, 5.6 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
