"""Readers of the four caption formats: token file, CSV, JSON Lines, Karpathy's JSON.

Every input item becomes exactly one `CaptionLine` or one `Rejection`; nothing is repaired, nothing
is dropped. The formats:

- token: ``name.jpg#0<TAB>caption``, one per line (Flickr8k's and Flickr30k's original release);
- CSV: a header with the columns ``image`` and ``caption``, optionally ``split``;
- JSON Lines: one object per line with the same keys;
- Karpathy's JSON: ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``.
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from showtell.data.image_folders import name_fault
from showtell.data.splits import split_named
from showtell.data.text_files import TextFile, encoding_fault, excerpt, read_text
from showtell.errors import UserError
from showtell.types import Rejection, Split

TOKEN_LINE = re.compile(r"(?P<image>[^\t]*)#(?P<number>\d{1,9})\t(?P<caption>.*)", re.DOTALL)
_KARPATHY_KEYS = ("images", "filename", "filepath", "split", "sentences", "raw")
# Bounds what a stray quote can swallow; no real caption has more lines.
_MAX_LINES_PER_CSV_ROW = 20


@dataclass(frozen=True, slots=True)
class CaptionLine:
    """One caption as in the input; `item` names it, `line` is 1-based (None in Karpathy's JSON)."""

    image: str
    caption: str
    split: Split | None
    item: str
    line: int | None


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """A caption file as read: accepted lines, rejected lines, SHA-256 and notes for the user."""

    path: Path
    lines: tuple[CaptionLine, ...]
    rejected: tuple[Rejection, ...]
    sha256: str
    notes: tuple[str, ...]


def read_token_file(path: Path) -> CaptionFile:
    """Read ``name#number<TAB>caption`` lines."""
    text = _text_with_content(path)
    seen: set[str] = set()
    entries = [_token_entry(path, number, line, seen) for number, line in enumerate(text.lines, 1)]
    return _caption_file(text, entries, text.notes)


def read_csv_file(path: Path) -> CaptionFile:
    """Read a CSV with a header; a note lists columns other than image, caption and split."""
    text = _text_with_content(path)
    header = csv_header(text.lines[0])
    if not header.count("image") == header.count("caption") == 1:
        raise UserError(
            f"{path}:1 is no header with one column image and one column caption "
            f"(it reads {excerpt(text.lines[0])!r}): add one, or write JSON Lines"
        )
    entries = [_csv_entry(path, row, header) for row in _csv_rows(text.lines)]
    unused = [column for column in header if column not in ("image", "caption", "split")]
    note = [f"{path.name} has columns that are not used: {', '.join(unused)}"] if unused else []
    return _caption_file(text, entries, (*text.notes, *note))


def read_json_lines_file(path: Path) -> CaptionFile:
    """Read one JSON object per line, with ``image``, ``caption`` and optionally ``split``."""
    text = _text_with_content(path)
    entries = [_json_entry(path, number, line) for number, line in enumerate(text.lines, 1)]
    return _caption_file(text, entries, text.notes)


def read_karpathy_file(path: Path) -> CaptionFile:
    """Read Karpathy's ``dataset_*.json`` of Flickr8k, Flickr30k or COCO.

    Raises:
        UserError: the file is not UTF-8, not JSON, or has no list ``images``.
    """
    text = _text_with_content(path)
    for number, line in enumerate(text.lines, 1):
        if fault := encoding_fault(line):
            raise UserError(f"{path}:{number} is {fault}: get a fresh copy of the file")
    images = _karpathy_images(text)
    # Frees the text: COCO's takes 140 MB, and what was parsed from it as much again.
    text = replace(text, lines=())
    entries = [entry for image in images for entry in _karpathy(path, image)]
    return _caption_file(text, entries, ())  # line endings do not matter in JSON


def _karpathy_images(text: TextFile) -> list[Any]:
    """The list ``images`` of the document, without the fields that are never used."""
    path = text.path
    try:
        document = json.loads("\n".join(text.lines), object_hook=_needed)
    except json.JSONDecodeError as error:
        message = f"{path}:{error.lineno} is not JSON ({error.msg}): get a fresh copy of the file"
        raise UserError(message) from None
    except (ValueError, RecursionError):  # a number too long, a nesting too deep
        raise UserError(f"{path}:1 is not Karpathy's JSON: get a fresh copy of the file") from None
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise UserError(f'{path}:1 has no list "images": it is not Karpathy\'s dataset JSON')
    return images


def _needed(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop fields that are never used: COCO's lists of words alone take 500 MB."""
    return {key: fields[key] for key in _KARPATHY_KEYS if key in fields}


def csv_header(line: str) -> list[str]:
    """The column names in a header line, stripped and lower-case; empty if it is not CSV."""
    try:
        return [name.strip().lower() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def _text_with_content(path: Path) -> TextFile:
    text = read_text(path)
    if not any(line.strip() for line in text.lines):
        raise UserError(f"{path} is empty: put the captions there or get a fresh copy")
    return text


def _caption_file(
    text: TextFile, entries: list[CaptionLine | Rejection], notes: tuple[str, ...]
) -> CaptionFile:
    return CaptionFile(
        path=text.path,
        lines=tuple(entry for entry in entries if isinstance(entry, CaptionLine)),
        rejected=tuple(entry for entry in entries if isinstance(entry, Rejection)),
        sha256=text.sha256,
        notes=notes,
    )


def _blank_or_undecodable(path: Path, number: int, line: str) -> Rejection | None:
    if not line.strip():
        return Rejection("", path, number, "blank line", harmless=True)
    if fault := encoding_fault(line):
        return Rejection(excerpt(line), path, number, fault)
    return None


def _entry(
    path: Path, number: int | None, item: str, image: str, caption: str, split: str
) -> CaptionLine | Rejection:
    """Check the image name, caption and split, as for all formats."""
    reason = name_fault(image)
    if reason is None and not caption.strip():
        reason = "empty caption"
    if reason is None and not _is_text(caption):
        reason = "not text: the caption holds half of a surrogate pair"
    known_split = split_named(split) if split else None
    if reason is None and split and known_split is None:
        reason = f"unknown split: {excerpt(split)!r} is none of train, val, test"
    if reason is not None:
        return Rejection(excerpt(item), path, number, reason)
    return CaptionLine(_normal(image), caption, known_split, item, number)


@lru_cache(maxsize=16)  # captions of an image come in a row and repeat its name
def _normal(image: str) -> str:
    return posixpath.normpath(image)


def _token_entry(path: Path, number: int, line: str, seen: set[str]) -> CaptionLine | Rejection:
    if rejection := _blank_or_undecodable(path, number, line):
        return rejection
    match = TOKEN_LINE.fullmatch(line)
    if match is None:
        reason = "malformed line: no image#number before a tab"
        return Rejection(excerpt(line), path, number, reason)
    item = f"{match['image']}#{int(match['number'])}"
    if item in seen:
        return Rejection(excerpt(item), path, number, "duplicate caption number")
    seen.add(item)
    return _entry(path, number, item, match["image"], match["caption"], "")


@dataclass(frozen=True, slots=True)
class _CsvRow:
    """A row: number of its first line (1-based), raw text, and fields or what is wrong."""

    line: int
    raw: str
    fields: list[str] | str


def _csv_rows(lines: tuple[str, ...]) -> Iterator[_CsvRow]:
    """The rows after the header. An unclosed quote loses its own line, never the rest."""
    index = 1
    while index < len(lines):
        length, fields = _csv_fields(lines[index : index + _MAX_LINES_PER_CSV_ROW])
        yield _CsvRow(index + 1, "\n".join(lines[index : index + length]), fields)
        index += length


def _csv_fields(lines: tuple[str, ...]) -> tuple[int, list[str] | str]:
    """Parse the row that begins in the first line: (number of lines it takes, fields or fault)."""
    for length in range(1, len(lines) + 1):
        try:
            return length, next(csv.reader(["\n".join(lines[:length])], strict=True), [])
        except csv.Error as error:
            # Further lines can only help if a quote is still open.
            if "unexpected end of data" not in str(error):
                return 1, str(error) if length == 1 else "a quote is never closed"
    return 1, "a quote is never closed"


def _csv_entry(path: Path, row: _CsvRow, header: list[str]) -> CaptionLine | Rejection:
    if rejection := _blank_or_undecodable(path, row.line, row.raw):
        return rejection
    fault = row.fields if isinstance(row.fields, str) else None
    if fault is None and len(row.fields) != len(header):
        fault = f"{len(row.fields)} fields where the header has {len(header)}"
    if fault is not None:
        return Rejection(excerpt(row.raw), path, row.line, f"malformed line: {fault}")
    fields = dict(zip(header, row.fields, strict=True))
    image, split = fields["image"], fields.get("split", "").strip()
    return _entry(path, row.line, image, image, fields["caption"], split)


def _json_entry(path: Path, number: int, line: str) -> CaptionLine | Rejection:
    if rejection := _blank_or_undecodable(path, number, line):
        return rejection
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return Rejection(excerpt(line), path, number, "malformed line: not JSON")
    if not isinstance(fields, dict) or not _are_strings(fields.get, "image", "caption"):
        reason = 'malformed line: no object with the texts "image" and "caption"'
        return Rejection(excerpt(line), path, number, reason)
    image, split = fields["image"], str(fields.get("split") or "")
    return _entry(path, number, image, image, fields["caption"], split)


def _karpathy(path: Path, image: Any) -> Iterator[CaptionLine | Rejection]:
    """The captions of one entry of ``images``; an entry without any is one rejection."""
    if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
        yield Rejection(excerpt(json.dumps(image)), path, None, "malformed entry: no filename")
        return
    folder = image.get("filepath") or ""
    name = f"{folder}/{image['filename']}" if folder else image["filename"]
    sentences, split = image.get("sentences"), str(image.get("split") or "")
    if not isinstance(sentences, list) or not sentences:
        yield Rejection(excerpt(name), path, None, "image without captions")
        return
    for number, sentence in enumerate(sentences):
        item = f"{name}#{number}"
        if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str):
            yield _entry(path, None, item, name, sentence["raw"], split)
        else:
            yield Rejection(excerpt(item), path, None, 'malformed entry: no text "raw"')


def _are_strings(get: Callable[[str], object], *keys: str) -> bool:
    return all(isinstance(get(key), str) for key in keys)


def _is_text(caption: str) -> bool:
    r"""Whether a caption can be encoded as UTF-8: JSON may contain a lone ``\ud800``."""
    return caption.isascii() or not any("\ud800" <= c <= "\udfff" for c in caption)
