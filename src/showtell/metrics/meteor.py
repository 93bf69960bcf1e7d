"""METEOR 1.5 (Denkowski & Lavie 2014) in a Java process that is started once and reused.

The scorer and its protocol are pycocoevalcap's: for each line with a caption it returns a line of
statistics; for one line with all statistics it returns a score per caption and the corpus score.
Loading its paraphrases takes seconds, so the process is kept. It is killed if it does not answer in
time, and at exit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor

from showtell.errors import UserError
from showtell.metrics.java import INSTALL_JAVA, LOCALE_OPTIONS, find_java
from showtell.metrics.statistics import meteor_statistics

_SECONDS_PER_CAPTION = 0.1  # about twenty times the usual

_JAR = Path(pycocoevalcap_meteor.__file__).with_name(pycocoevalcap_meteor.METEOR_JAR)


class MeteorError(UserError):
    """METEOR's process could not be started, or it died."""


class MeteorTimeoutError(MeteorError):
    """METEOR's process did not answer in time."""


@dataclass(frozen=True, slots=True)
class MeteorResult:
    """METEOR of the set and of each caption, 0 to 1, and per-image statistics to sum, [I, 23]."""

    corpus: float
    each: list[float]
    statistics: NDArray[np.float64]


class Meteor:
    """A scorer process; thread-safe, one call at a time.

    Args:
        java: the Java executable.
        limit_seconds: time limit of a call of `score`, including the start of the process; each
            caption adds 0.1 s.
    """

    def __init__(self, java: Path, *, limit_seconds: float) -> None:
        self._java = java
        self._limit_seconds = limit_seconds
        self._turn = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._complaints: deque[str] = deque(maxlen=1)

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorResult:
        """Score captions against their references, both as words separated by spaces.

        A process that died since the last call is replaced; one that dies now is replaced once.

        Raises:
            MeteorTimeoutError: no answer in time.
            MeteorError: the process could not be started, or died twice.
        """
        with self._turn:
            try:
                return self._score(captions, references)
            except MeteorTimeoutError:
                raise
            except MeteorError:
                return self._score(captions, references)

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):  # unread input is lost with the process
                self._process.stdin.close()  # type: ignore[union-attr]
            self._process = None

    def _score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorResult:
        allowed = self._limit_seconds + _SECONDS_PER_CAPTION * len(captions)
        deadline = time.monotonic() + allowed
        process = self._running()
        lines = [_score_line(c, r) for c, r in zip(captions, references, strict=True)]
        statistics = self._ask(process, lines, len(lines), deadline)
        scores = self._ask(process, [" ||| ".join(["EVAL", *statistics])], len(lines) + 1, deadline)
        try:
            *each, corpus = map(float, scores)
            counts = np.array([line.split() for line in statistics], dtype=np.float64)
        except ValueError as error:
            self.close()
            raise MeteorError(f"METEOR answered {error}: {self._remedy()}") from error
        return MeteorResult(corpus, each, meteor_statistics(counts))

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        return self._process

    def _start(self) -> None:
        self.close()
        # New ones, so that output of a dead process cannot reach its successor.
        self._answers = queue.SimpleQueue()
        self._complaints = deque(maxlen=1)
        command = [str(self._java), *LOCALE_OPTIONS, "-Xmx2G", "-jar", str(_JAR)]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except OSError as error:
            raise MeteorError(f"METEOR did not start ({error}): {INSTALL_JAVA}") from error
        # Both are read continuously: a full pipe would block the process.
        for read, source in (
            (partial(_collect, self._answers), self._process.stdout),
            (self._complaints.extend, self._process.stderr),
        ):
            threading.Thread(target=read, args=(source,), daemon=True).start()

    def _ask(
        self, process: subprocess.Popen[str], lines: Sequence[str], answers: int, deadline: float
    ) -> list[str]:
        assert process.stdin is not None
        # A hung process stops reading, and writing to it would then block forever.
        alarm = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        alarm.start()
        try:
            for line in lines:
                process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return [self._answer(deadline) for _ in range(answers)]
        except OSError as error:
            raise self._died(deadline) from error
        finally:
            alarm.cancel()

    def _answer(self, deadline: float) -> str:
        try:
            answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            answer = None
        if answer is None:
            raise self._died(deadline)
        return answer

    def _died(self, deadline: float) -> MeteorError:
        self.close()
        if time.monotonic() >= deadline:
            return MeteorTimeoutError(
                "METEOR gave no answer in time and was stopped: free the processor, or score "
                "fewer captions at a time"
            )
        return MeteorError(f"METEOR's process ended: {self._remedy()}")

    def _remedy(self) -> str:
        said = self._complaints[-1].strip() if self._complaints else "nothing"
        return f"try again with 2 GB of free memory (Java said: {said})"


def _score_line(caption: str, references: Sequence[str]) -> str:
    return " ||| ".join(["SCORE", *map(_plain, references), _plain(caption)])


def _plain(sentence: str) -> str:
    # The protocol's separator can only occur inside a token such as <!a|||b>.
    return sentence.replace("|||", "")


def _collect(answers: queue.SimpleQueue[str | None], lines: IO[str]) -> None:
    for line in lines:
        answers.put(line.strip())
    answers.put(None)


_shared: Meteor | None = None
_owner = 0


def shared_meteor(*, limit_seconds: float = 300.0) -> Meteor | None:
    """This process's scorer, started on first use; None without Java."""
    global _shared, _owner
    java = find_java()
    if java is None:
        return None
    if _shared is None or _owner != os.getpid():  # a fork must not write to its parent's pipe
        _shared, _owner = Meteor(java, limit_seconds=limit_seconds), os.getpid()
        atexit.register(_close_shared, _shared, _owner)
    return _shared


def _close_shared(meteor: Meteor, owner: int) -> None:
    if owner == os.getpid():
        meteor.close()
