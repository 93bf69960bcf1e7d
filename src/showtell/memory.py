"""Memory that a training asks for again in every step, kept by the process in between."""

from __future__ import annotations

import ctypes

# Options of glibc's ``mallopt``, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1  # of an int
_AT_ONCE = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, from now on and in the whole process.

    glibc hands large blocks back to the system as soon as they are freed. The scores of a step, or
    the maps of a network, are such blocks: each step gets them anew, and the system clears each
    page of 4 KB at its first touch, which costs more than to compute what is written there.

    Returns:
        Whether it could be told to; only glibc can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST, _TOP_PAD: _AT_ONCE}
    return all(mallopt(option, value) == 1 for option, value in options.items())
