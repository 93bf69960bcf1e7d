"""Keeps freed memory in the process, for trainings that allocate the same in every step."""

from __future__ import annotations

import ctypes

# Options of glibc's ``mallopt``, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1  # of a C int
_AT_ONCE = 64 * 2**20


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, from now on and in the whole process.

    By default it returns large blocks to the system when they are freed. A step's logits or a
    network's feature maps are such blocks: each step allocates them again, and the system zeroes
    each page of 4 KB at its first use, which costs more than computing what is written there.

    Returns:
        Whether it succeeded; false without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST, _TOP_PAD: _AT_ONCE}
    return all(mallopt(option, value) == 1 for option, value in options.items())
