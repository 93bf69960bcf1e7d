"""File locks that are released when their process ends, so that a kill leaves none behind."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from showtell.errors import UserError


def open_locked(file: Path) -> BinaryIO | None:
    """Open ``file`` for appending and lock it, without waiting; None if the lock is taken.

    The file and its folder are created if necessary. The lock belongs to the open file: a child
    process that inherits it keeps the lock after its parent closed it or died.

    Raises:
        UserError: the file cannot be opened, or its file system does not support locks.
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
    """Hold a lock on ``file`` within the block; yields whether it was acquired.

    With ``wait`` that is always true. Several processes can hold a ``shared`` lock.

    Raises:
        UserError: the file system does not support locks.
    """
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    # Opened for both: NFS needs a readable file for a shared lock, a writable one for an exclusive.
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
