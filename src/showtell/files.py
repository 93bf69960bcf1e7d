"""Files that are either the old or the new, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from showtell.errors import UserError


def write_atomically(file: Path, *data: bytes | memoryview) -> None:
    """Write ``file``, making its folder, so that a kill or a power cut leaves the old or the new.

    Several ``data`` follow each other in the file; what is large need not be joined for it.

    Written beside its target: a temporary folder may be another disk, where moving means copying.

    Raises:
        UserError: the disk is full or may not be written; what ``file`` held before is intact.
    """
    write_together({file: data})


def write_together(files: Mapping[Path, Sequence[bytes | memoryview]]) -> None:
    """Write files that belong together: all wait on the disk before the first takes its place.

    ``files`` has what follows each other in each of them.

    So a kill leaves all old or all new, unless it falls between two moves, which take no time.

    Raises:
        UserError: the disk is full or may not be written; what the files held before is intact.
    """
    # Named after the process: two that write one file do not write one part.
    parts = {file: file.with_name(f".{file.name}.{os.getpid()}.part") for file in files}
    try:
        for file, data in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with parts[file].open("wb") as stream:
                stream.writelines(data)
                stream.flush()
                os.fsync(stream.fileno())
        for file, part in parts.items():
            part.replace(file)
        for folder in {file.parent for file in files}:
            _sync_folder(folder)
    except OSError as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
        raise UserError(
            f"{file} cannot be written ({error.strerror}): make room or give write permission there"
        ) from error


def check_writable(file: Path) -> None:
    """Make the folder of a new file that is to be written after long work, and try to write there.

    Raises:
        UserError: as ``write_atomically`` would, but before the work.
    """
    write_atomically(file, b"")
    file.unlink()


def remove_parts(file: Path) -> None:
    """Delete what killed processes left of their writing of ``file``."""
    for part in file.parent.glob(f".{file.name}.*.part"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
