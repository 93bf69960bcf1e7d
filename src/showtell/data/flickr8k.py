"""Reads Flickr8k in any common layout, recognised by content, not by folder names.

Below a root there may be, in any combination: the original release (a token file and split lists),
Kaggle's two copies (the same in other folders; a CSV without lists), Karpathy's JSON. Of several
caption files one is read, by this precedence:

1. with split lists: token file, CSV, Karpathy's JSON (whose own splits then count);
2. without: Karpathy's JSON (it has splits), token file, CSV (splits are drawn).

Ties go to the shallowest path, then to the alphabetically first. A split list next to the caption
file takes precedence over one elsewhere. The notes list what was not read.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from showtell.data.caption_files import (
    TOKEN_LINE,
    CaptionFile,
    csv_header,
    read_csv_file,
    read_karpathy_file,
    read_token_file,
)
from showtell.data.image_folders import ImageFolders, is_image_name, rank_by_content
from showtell.data.records import assemble
from showtell.data.splits import SplitList, read_split_list, split_named
from showtell.errors import UserError
from showtell.types import SPLITS, CaptionData, Split

Format = Literal["token", "csv", "karpathy"]

_READERS = {"token": read_token_file, "csv": read_csv_file, "karpathy": read_karpathy_file}
_PRECEDENCE: dict[bool, tuple[Format, ...]] = {  # whether there are split lists
    True: ("token", "csv", "karpathy"),
    False: ("karpathy", "token", "csv"),
}
_TEXT_SUFFIXES = frozenset({".txt", ".csv", ".json", ".token"})
_LIST_NAME = re.compile(
    r"(?:.*[._-])?(train|dev|val|valid|validation|test)(?:[._-]?images)?\.txt", re.IGNORECASE
)
_MAX_DEPTH = 5
_SNIFFED_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Layout:
    """What a root contains: the caption file and split lists to read, folders, unread files."""

    captions: Path
    format: Format
    lists: dict[Split, Path]
    folders: tuple[Path, ...]
    unread: tuple[Path, ...]


def read_flickr8k(root: Path, *, split_seed: int) -> CaptionData:
    """Read the layout found below ``root``; every faulty item goes to ``rejected``.

    Raises:
        UserError: the folder is missing, or has no usable captions or none of their images.
    """
    layout = find_layout(root)
    captions = _READERS[layout.format](layout.captions)
    lists = [read_split_list(path, split) for split, path in layout.lists.items()]
    names = dict.fromkeys(line.image for line in captions.lines)
    folders = ImageFolders(rank_by_content(layout.folders, names) or [root])
    data = assemble(captions, lists, folders, name="flickr8k", split_seed=split_seed)
    return replace(
        data,
        origin=_origin(root, captions, lists),
        notes=(*_layout_notes(root, layout), *data.notes),
    )


def find_layout(root: Path) -> Layout:
    """Search the folders below ``root`` and choose what to read.

    Raises:
        UserError: the folder is missing, or has no caption file or no image.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: set data.root to the folder of the data set")
    visits = list(_walk(root, depth=0, seen=set()))
    texts = sorted((path for visit in visits for path in visit.texts), key=_shallowest_first)
    formats = {path: found for path in texts if (found := _caption_format(path)) is not None}
    if not formats:
        raise _no_captions(root, texts)
    if not any(visit.holds_images for visit in visits):
        raise UserError(f"{root} holds no image: put the photographs below it")
    lists = {
        path: split
        for path in texts
        if path not in formats and (split := _listed_split(path)) is not None
    }
    order = _PRECEDENCE[bool(lists)]
    chosen = min(formats, key=lambda path: order.index(formats[path]))
    used = _nearest_lists(lists, chosen) if formats[chosen] != "karpathy" else {}
    unread = {*formats, *lists} - {chosen, *used.values()}
    return Layout(
        captions=chosen,
        format=formats[chosen],
        lists=used,
        folders=tuple(visit.folder for visit in visits),
        unread=tuple(path for path in texts if path in unread),
    )


@dataclass(frozen=True, slots=True)
class _Visit:
    """One folder: its text files, and whether it contains an image."""

    folder: Path
    texts: tuple[Path, ...]
    holds_images: bool


def _walk(folder: Path, *, depth: int, seen: set[Path]) -> Iterator[_Visit]:
    """Visit a folder and its subfolders; links are followed, each real folder only once."""
    real = folder.resolve()
    if real in seen or depth > _MAX_DEPTH:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        raise UserError(f"{folder} cannot be listed: check its permissions") from None
    # Archivers leave hidden entries and __MACOSX, which repeat the names of the originals.
    entries = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    names = [entry.name for entry in entries if entry.is_file()]
    texts = tuple(folder / name for name in names if Path(name).suffix.lower() in _TEXT_SUFFIXES)
    yield _Visit(folder, texts, any(is_image_name(name) for name in names))
    for entry in entries:
        if entry.is_dir():
            yield from _walk(folder / entry.name, depth=depth + 1, seen=seen)


def _shallowest_first(path: Path) -> tuple[int, str]:
    return len(path.parts), path.as_posix()


def _caption_format(path: Path) -> Format | None:
    """The caption format of a text file, judged by its beginning; None for any other file."""
    # Flickr8k's lemmatised captions have the token format but are not what people wrote.
    if "lemma" in path.name.lower():
        return None
    head = _head(path)
    if path.suffix.lower() == ".json":
        return "karpathy" if '"images"' in head and '"sentences"' in head else None
    lines = head.splitlines()
    if lines and {"image", "caption"} <= set(csv_header(lines[0])):
        return "csv"
    # A token file by name counts as one even if every line is damaged.
    named_so = ".token" in path.name.lower() and bool(head.strip())
    return "token" if named_so or any(TOKEN_LINE.fullmatch(line) for line in lines) else None


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check its permissions"
        ) from None
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return head.decode("utf-16", "replace")  # recognised here, refused by `read_text`
    return head.decode("utf-8-sig", "replace")


def _listed_split(path: Path) -> Split | None:
    match = _LIST_NAME.fullmatch(path.name)
    return split_named(match[1]) if match else None


def _nearest_lists(lists: dict[Path, Split], captions: Path) -> dict[Split, Path]:
    """One list for each split: the one next to the caption file, else the shallowest."""
    chosen: dict[Split, Path] = {}
    for path in sorted(lists, key=lambda path: (path.parent != captions.parent, len(path.parts))):
        chosen.setdefault(lists[path], path)
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _no_captions(root: Path, texts: list[Path]) -> UserError:
    empty = [path for path in texts if not _head(path).strip()]
    if empty:
        return UserError(
            f"{empty[0]} is empty and {root} holds no other captions: get a fresh copy"
        )
    return UserError(
        f"{root} holds no captions (Flickr8k.token.txt, captions.txt with a header image,caption, "
        "or dataset_flickr8k.json): put them below it, or read another table with data=table"
    )


def _origin(root: Path, captions: CaptionFile, lists: list[SplitList]) -> dict[str, str]:
    digests = {captions.path: captions.sha256} | {one.path: one.sha256 for one in lists}
    return {path.relative_to(root).as_posix(): sha256 for path, sha256 in digests.items()}


def _layout_notes(root: Path, layout: Layout) -> list[str]:
    if not layout.unread:
        return []
    unread = ", ".join(path.relative_to(root).as_posix() for path in layout.unread)
    return [f"not read: {unread} ({layout.captions.relative_to(root).as_posix()} takes precedence)"]
