"""Reads a folder of images captioned by one CSV or JSON Lines table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from showtell.data.caption_files import read_csv_file, read_json_lines_file
from showtell.data.image_folders import ImageFolders
from showtell.data.records import assemble
from showtell.errors import UserError
from showtell.types import CaptionData


def read_table(file: Path, images: Path, *, split_seed: int) -> CaptionData:
    """Read the table ``file``, with image paths relative to ``images``; faults go to ``rejected``.

    A file whose first character is ``{`` is JSON Lines, any other is a CSV with a header.

    Raises:
        UserError: the file or folder is missing, or the table is empty, lacks the columns, or
            names no existing image.
    """
    try:
        if not file.is_file():
            raise UserError(
                f"{file} is not a file: set data.file to the table of images and captions"
            )
        if not images.is_dir():
            raise UserError(
                f"{images} is not a folder: set data.images to the folder of the images"
            )
        read = read_json_lines_file if _is_json_lines(file) else read_csv_file
    except OSError as error:
        raise UserError(
            f"{file} or {images} cannot be read ({error.strerror}): mend its name or permissions"
        ) from None
    captions = read(file)
    data = assemble(captions, [], ImageFolders([images]), name=file.stem, split_seed=split_seed)
    return replace(data, origin={file.name: captions.sha256})


def _is_json_lines(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
