"""Locks that die with the processes that hold them, so that no kill leaves one behind."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from showtell.errors import UserError


def open_locked(file: Path) -> BinaryIO | None:
    """Open ``file`` for appending, making it and its folder, and lock it; None while it is held.

    The lock belongs to the open file: a child that inherits it holds it on after its parent closed
    or died, until the last process that has the file open ends.

    Raises:
        UserError: the file cannot be made, or its file system has no locks.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("ab")
    except OSError as error:
        raise UserError(
            f"{file} cannot be opened ({error.strerror}): make room or give write permission there"
        ) from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    except OSError as error:
        stream.close()
        raise _no_locks(file, error) from error
    return stream


@contextmanager
def locked(file: Path, *, wait: bool, shared: bool = False) -> Iterator[bool]:
    """Hold a lock file for the block; yields whether we have it, which only fails without ``wait``.

    Raises:
        UserError: its file system has no locks.
    """
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    # NFS gives shared locks on readable files and exclusive ones on writable files alone.
    with file.open("a+b") as stream:
        try:
            fcntl.flock(stream, flags)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise _no_locks(file, error) from None
        yield True  # closing the file frees the lock


def _no_locks(file: Path, error: OSError) -> UserError:
    return UserError(
        f"{file} cannot be locked ({error.strerror}): put it on a file system with locks, or have "
        "it mounted with them (for Lustre: -o flock)"
    )
