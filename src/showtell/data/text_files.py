"""Reads the text files of a data set as lines, without losing or changing a byte within them."""

from __future__ import annotations

import codecs
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from showtell.errors import UserError

# `surrogateescape` decodes a byte that is not UTF-8 as U+DC00 plus the byte.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_EXCERPT_LENGTH = 60


@dataclass(frozen=True, slots=True)
class TextFile:
    """The lines of a file without line endings, its SHA-256, and notes on its peculiarities.

    Bytes that are not UTF-8 stay in the lines in escaped form: see `encoding_fault`.
    """

    path: Path
    lines: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...]


def read_text(path: Path) -> TextFile:
    """Read a UTF-8 file; CRLF, a byte order mark and a missing final newline are tolerated.

    Raises:
        UserError: the file cannot be opened or is UTF-16.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check its permissions"
        ) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}:1 starts as UTF-16: save the file as UTF-8")
    sha256 = hashlib.sha256(content).hexdigest()
    lines, notes = _split_lines(content)
    return TextFile(path, lines, sha256, tuple(f"{path.name} {note}" for note in notes))


def _split_lines(content: bytes) -> tuple[tuple[str, ...], list[str]]:
    notes = []
    if content.startswith(codecs.BOM_UTF8):
        content = content.removeprefix(codecs.BOM_UTF8)
        notes.append("starts with a byte order mark")
    # Only "\n" ends a line: str.splitlines would also split captions at U+2028 or a form feed.
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    if lines[-1] == "":
        lines.pop()
    elif lines != [""]:
        notes.append("has no newline at its end")
    if any(line.endswith("\r") for line in lines):
        notes.append("has CRLF line endings")
    return tuple(line.removesuffix("\r") for line in lines), notes


def encoding_fault(line: str) -> str | None:
    """The first byte of a line that is not UTF-8 and its place (1-based), or None."""
    if line.isascii():
        return None
    found = _ESCAPED_BYTE.search(line)
    if found is None:
        return None
    position = len(line[: found.start()].encode("utf-8", "surrogateescape")) + 1
    return f"not UTF-8: byte 0x{ord(found.group()) - 0xDC00:02x} at byte {position} of the line"


def excerpt(text: str) -> str:
    """The beginning of a text, safe to print: no control characters, no undecodable bytes."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= _EXCERPT_LENGTH else shown[: _EXCERPT_LENGTH - 1] + "…"
