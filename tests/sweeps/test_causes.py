"""Causes: one sentence from whatever a dead process left in its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from showtell.sweeps.causes import cause_of

TRACEBACK = """\
Traceback (most recent call last):
  File "train.py", line 1, in <module>
    raise {0}
{0}: {1}
"""


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (1, "error: optim.lr=fast: must be a number\n", "optim.lr=fast: must be a number"),
        (1, TRACEBACK.format("KeyError", "'dog'"), "KeyError: 'dog'"),
        (
            1,
            TRACEBACK.format("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate"),
            "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
        ),
        (
            1,
            TRACEBACK.format("RuntimeError", "DefaultCPUAllocator: can't allocate memory: 9 B"),
            "out of memory: RuntimeError: DefaultCPUAllocator: can't allocate memory: 9 B",
        ),
        (
            1,
            TRACEBACK.format("A", "b").replace("A: b", "MemoryError"),
            "out of memory: MemoryError",
        ),
        (1, TRACEBACK.format("StopTraining", "now\nand never\n"), "StopTraining: now"),
        (3, "epoch 1\n", "exit status 3"),
        (143, "interrupted; go on with: ...\n", "exit status 143: ended by SIGTERM"),
        (0, "epoch 1\n", "ended with status 0 before its run was finished"),
        (-11, "epoch 1\n", "killed by SIGSEGV"),
        (-40, "", "killed by signal 40"),
        (1, "\x1b[31merror: red\x1b[0m\n", "red"),
        (1, "ValueError: in no traceback\n", "exit status 1"),
    ],
)
def test_a_cause_is_one_sentence(tmp_path: Path, status: int, log: str, expected: str) -> None:
    file = tmp_path / "0000.log"
    file.write_text(log)
    assert cause_of(status, file, start=0) == expected


def test_only_the_last_attempt_speaks_and_not_for_long(tmp_path: Path) -> None:
    file = tmp_path / "0000.log"
    file.write_text("error: old\n")
    start = file.stat().st_size
    assert cause_of(1, file, start=start) == "exit status 1"
    file.write_text("error: old\nerror: " + "long " * 1000)
    assert len(cause_of(1, file, start=start)) == 300
