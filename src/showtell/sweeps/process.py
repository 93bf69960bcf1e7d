"""A job's process, with its own process group and log; it dies with its sweep."""

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

# Linux's prctl option that sends a process a signal when its parent dies.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class JobProcess:
    """The process of a started job.

    It inherits ``log``, which is locked, and ``slot_lock``: both locks are held as long as it
    lives, even if its driver dies.
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
            # Unbuffered, because the last output of a killed process matters most. The fault
            # handler prints the stack of every thread when the process is aborted.
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
        """Seconds since the start."""
        return time.monotonic() - self.started_at

    def poll(self) -> int | None:
        """The exit status (negative: the signal that killed it), None while it runs.

        Once it has ended, everything that it started is killed too.
        """
        status = self._process.poll()
        if status is not None:
            self.kill()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, not to those it started."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: the latter if it has ended
            os.killpg(self._process.pid, signal.SIGKILL)

    def silent_seconds(self) -> float:
        """Seconds since it was last seen writing anything."""
        newest = max(map(_changed_at, self._signs))
        # Timed by our clock, not by file times: the disk may be another machine's.
        if newest != self._newest:
            self._newest, self._newest_at = newest, time.monotonic()
        return time.monotonic() - self._newest_at


def _changed_at(path: Path) -> float:
    """When a file, or anything in a folder, was last changed; 0 if it does not exist."""
    with suppress(OSError):  # removed while we look
        inside = [_changed_at(each) for each in path.iterdir()] if path.is_dir() else []
        return max(path.stat().st_mtime, *inside, 0.0)
    return 0.0


def _die_with(driver: int) -> None:
    """Have Linux kill this process when its parent dies, however that happens."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # the parent died before the call
        os._exit(1)
