"""Why a job failed, in one sentence, from its exit status and its log."""

from __future__ import annotations

import re
import signal
from pathlib import Path

# Only the end of a log is read: the cause is there, and a log may be long.
_TAIL_BYTES = 2**16
_LONGEST = 300
# Escape sequences of progress bars and colours, which are removed.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NO_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|out of memory|can't allocate memory", re.I)


def cause_of(status: int, log: Path, *, start: int) -> str:
    """Why a process that did not finish its run ended with ``status`` (negative: by a signal).

    ``start`` is the byte of ``log`` where its own output begins.
    """
    said = _last_words(log, start)
    memory = "out of memory: " if said and _NO_MEMORY.search(said) else ""
    if status < 0:
        return _shortened(f"{memory}killed by {_signal_name(-status)}{_guess(-status)}")
    if said is not None:
        return _shortened(memory + said)
    if status == 0:
        return "ended with status 0 before its run was finished"
    # The convention of shells, and of our own programs, for a handled signal.
    handled = f": ended by {_signal_name(status - 128)}" if status > 128 else ""
    return f"exit status {status}{handled}"


def _last_words(log: Path, start: int) -> str | None:
    """The last ``error:`` line or exception in the log; None if there is none."""
    with log.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(start, size - _TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    lines = [_CONTROL.sub("", line).strip("\r") for line in text.splitlines()]
    said, in_traceback = None, False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif line.startswith("error: "):
            said = line.removeprefix("error: ")
        elif in_traceback and line.strip() and not line.startswith(" "):
            said, in_traceback = line, False
    return said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _guess(number: int) -> str:
    if number == signal.SIGKILL:
        return ", which is also what a system does that runs out of memory"
    return ""


def _shortened(sentence: str) -> str:
    sentence = " ".join(sentence.split())
    return sentence if len(sentence) <= _LONGEST else sentence[: _LONGEST - 3] + "..."
