"""Finds the image files that captions name."""

from __future__ import annotations

import errno
import ntpath
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from showtell.errors import UserError

# Errors of what cannot be there: a name that is too long, a link that leads to itself.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class ImageFolders:
    """Looks up image names in one or more base folders; lists each folder only once.

    Base folders come from the user and may be links to anywhere; names come from data and must
    have passed `name_fault`. If the exact name is absent, a file that differs only in the case of
    its extension (``x.JPG``) is taken, provided there is just one.
    """

    def __init__(self, bases: Iterable[Path]) -> None:
        self.bases = tuple(bases)
        self._listings: dict[Path, _Listing] = {}
        self._folders: dict[tuple[Path, str], Path] = {}  # Paths are slow to make

    def find(self, name: str) -> Path | None:
        """The file of an image, or None if it is in no base folder."""
        parent, _, file_name = name.rpartition("/")
        for base in self.bases:
            folder = self._folder(base, parent)
            found = self._listing(folder).find(file_name)
            if found is not None:
                return folder / found
        return None

    def _folder(self, base: Path, parent: str) -> Path:
        if (base, parent) not in self._folders:
            self._folders[base, parent] = base / parent if parent else base
        return self._folders[base, parent]

    def foreign(self) -> list[Path]:
        """The image files, in the folders listed so far, that were never looked up."""
        return sorted(
            folder / name
            for folder, listing in self._listings.items()
            for name in listing.names - listing.found
            if is_image_name(name)
        )

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(frozenset(_file_names(folder)))
        return self._listings[folder]


def is_image_name(name: str) -> bool:
    """Whether a file name has an image extension and is not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


@lru_cache(maxsize=16)  # captions of an image come in a row
def name_fault(name: str) -> str | None:
    """Why a name taken from data may not be used as a path below the image folder, or None."""
    if not name.strip():
        return "no image name"
    if not name.isprintable():  # control characters, and every byte that is not UTF-8
        return "unprintable characters in the image name"
    drive, _ = ntpath.splitdrive(name)
    if drive or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return "the image name leaves the image folder"
    return None


def rank_by_content(candidates: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """The folders that contain any of the named images, those with most of them first.

    Ties are ordered by depth, then alphabetically.
    """
    wanted: dict[str, set[str]] = {}  # parent within the name -> file names
    for name in names:
        parent, _, file_name = name.rpartition("/")
        wanted.setdefault(parent, set()).add(_lower_suffix(file_name))
    hits = {folder: _hits(folder, wanted) for folder in candidates}
    holders = [folder for folder, count in hits.items() if count]
    return sorted(holders, key=lambda folder: (-hits[folder], len(folder.parts), folder.as_posix()))


def _hits(folder: Path, wanted: Mapping[str, set[str]]) -> int:
    return sum(
        len(file_names.intersection(map(_lower_suffix, _file_names(folder / parent))))
        for parent, file_names in wanted.items()
    )


@dataclass(slots=True)
class _Listing:
    names: frozenset[str]
    found: set[str] = field(default_factory=set, init=False)
    _by_lower_suffix: dict[str, list[str]] | None = field(default=None, init=False)

    def find(self, name: str) -> str | None:
        if name in self.names:
            self.found.add(name)
            return name
        # Built at the first miss, because most data sets never need it.
        if self._by_lower_suffix is None:
            self._by_lower_suffix = {}
            for present in self.names:
                self._by_lower_suffix.setdefault(_lower_suffix(present), []).append(present)
        alike = self._by_lower_suffix.get(_lower_suffix(name), [])
        if len(alike) != 1:
            return None
        self.found.add(alike[0])
        return alike[0]


def _lower_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (Path is 10 times slower here)
    return stem + suffix.lower()


def _file_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _is_file(entry)]
    except OSError as error:
        if error.errno in _NOT_THERE:
            return []
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): check the disk and its permissions"
        ) from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise
