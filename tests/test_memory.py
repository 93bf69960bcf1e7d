"""Freed memory: the next block of its size needs no fresh pages of the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from showtell import memory

# The pages of 40 MB, of which ten blocks are written and freed, one after the other.
PAGES, BLOCKS = 40 * 2**20 // 4096, 10
COUNT = f"""
import resource, sys
import numpy as np
from showtell.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({BLOCKS}):
        np.ones({PAGES} * 4096, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
faults()  # asks for the memory that is kept from then on
print(given_back, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc here")
def test_blocks_that_are_freed_are_used_again() -> None:
    said = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    given_back, kept = map(int, said.stdout.split())
    # Where the system gives pages of 2 MB, 512 of them are one fault.
    assert given_back > BLOCKS * PAGES / 600
    assert kept < given_back / 20


def test_other_libraries_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()
