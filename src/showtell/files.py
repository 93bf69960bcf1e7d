"""Atomic writes: a file has either its old or its new content, whatever happens meanwhile."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from showtell.errors import UserError


def write_atomically(file: Path, *data: bytes | memoryview) -> None:
    """Write ``file`` so that a kill or a power cut leaves its old or its new content.

    Its folder is created if necessary. Several ``data`` are concatenated, so that large parts need
    not be joined in memory. The temporary file is in the same folder, because moving between disks
    would be copying.

    Raises:
        UserError: the disk is full or not writable; the old content of ``file`` is intact.
    """
    write_together({file: data})


def write_together(files: Mapping[Path, Sequence[bytes | memoryview]]) -> None:
    """Write files that belong together; ``files`` maps each to its parts, to be concatenated.

    All are flushed to disk under temporary names before the first is renamed. So a kill leaves all
    old or all new, unless it falls between two renames, which take almost no time.

    Raises:
        UserError: one is a folder, or the disk is full or not writable; old files are intact unless
            a rename failed.
    """
    # Named after the process: two processes writing the same file use different parts.
    parts = {file: file.parent / f".{file.name}.{os.getpid()}.part" for file in files}
    try:
        for file in files:
            if file.is_dir():
                raise UserError(f"{file} is a folder: name a file")
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
    """Check before long work that a new file can be written; creates its folder.

    ``file`` must not exist: it is written empty and deleted.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomically(file, b"")
    file.unlink()


def remove_parts(file: Path) -> None:
    """Delete temporary files that killed processes left when writing ``file``."""
    for part in file.parent.glob(f".{file.name}.*.part"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
