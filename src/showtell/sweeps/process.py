"""A job's process: its own group, its own log, and no life beyond that of its sweep."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# What Linux calls it: a signal to a process whose parent has died.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class JobProcess:
    """A started job.

    ``log``, locked, and ``slot_lock`` become the process's own: they are held as long as it lives,
    whoever started it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: BinaryIO,
        slot_lock: BinaryIO,
        signs: Iterable[Path],
    ) -> None:
        self.log = Path(log.name)
        self.started_at = time.monotonic()
        self._signs = [self.log, *signs]
        self._newest, self._newest_at = 0.0, self.started_at
        settings = [f"{name}={value}" for name, value in environment.items()]
        log.write(f"$ {shlex.join(['env', *settings, *command])}\n".encode())
        log.flush()
        self.log_start = log.tell()
        driver = os.getpid()
        self._process = subprocess.Popen(
            command,
            # Unbuffered: what a killed process has said is worth most. And Python tells of every
            # thread where it was when it is aborted.
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[slot_lock.fileno()],
            preexec_fn=lambda: _die_with(driver),  # safe: a driver has one thread
        )

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self.started_at

    def poll(self) -> int | None:
        """Its exit status (negative: the signal that killed it), None while it runs.

        Once it ended, nothing that it started is left.
        """
        status = self._process.poll()
        if status is not None:
            self.kill()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send the process, not those it started, a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it and all it started."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: the latter for the ended
            os.killpg(self._process.pid, signal.SIGKILL)

    def silent_seconds(self) -> float:
        """How long ago it was last seen writing anything."""
        newest = max(map(_changed_at, self._signs))
        # Our clock, not that of the files: the disk may be another machine's.
        if newest != self._newest:
            self._newest, self._newest_at = newest, time.monotonic()
        return time.monotonic() - self._newest_at


def _changed_at(path: Path) -> float:
    """When a file, or anything in a folder, was last changed; 0 when there is none."""
    with suppress(OSError):  # removed while we look
        inside = [_changed_at(each) for each in path.iterdir()] if path.is_dir() else []
        return max(path.stat().st_mtime, *inside, 0.0)
    return 0.0


def _die_with(driver: int) -> None:
    """Have the system kill this process when its parent dies, however it dies."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # it died before we said so
        os._exit(1)
