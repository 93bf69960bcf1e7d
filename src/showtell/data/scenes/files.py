"""The built-in data set on disk, in the layout of the original Flickr8k release."""

from __future__ import annotations

import random
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from showtell.data.scenes.drawing import draw
from showtell.data.scenes.facts import imagine
from showtell.data.scenes.grammar import describe
from showtell.data.sources import flickr8k
from showtell.errors import UserError
from showtell.types import CaptionData, Split

# Part of the folder's name: raise it with every change that alters a pixel or a word, so that
# pictures of an older version are never taken for the current ones.
GENERATOR_VERSION = 1

IMAGE_FOLDER = "Flicker8k_Dataset"  # spelt as in the original release
TEXT_FOLDER = "Flickr8k_text"
TOKEN_FILE = "Flickr8k.token.txt"
SPLIT_FILES: dict[Split, str] = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def scenes(
    *,
    root: str,
    seed: int,
    train_images: int,
    val_images: int,
    test_images: int,
    skip_rejected: bool,
) -> CaptionData:
    """The built-in data set, drawn below ``root`` the first time and read like Flickr8k itself.

    Args:
        root: the folder to keep it in; every seed and every size gets a subfolder of its own.
        seed: another seed, other pictures of the same world.
        train_images: number of pictures to learn from; val_images and test_images likewise.
        val_images: each with a composition held out of training (see facts.py).
        test_images: each with a composition held out of training and of val.
        skip_rejected: go on without damaged pictures instead of stopping at them.

    Raises:
        UserError: a number of images is impossible, ``root`` cannot be written, or what is there
            was damaged since.
    """
    folder = ensure_scenes(
        Path(root).expanduser(),
        seed=seed,
        train_images=train_images,
        val_images=val_images,
        test_images=test_images,
    )
    data = flickr8k(root=str(folder), split_seed=seed, skip_rejected=skip_rejected)
    return replace(data, name="scenes")


def ensure_scenes(
    root: Path, *, seed: int, train_images: int, val_images: int, test_images: int
) -> Path:
    """The folder below ``root`` with this very data set, generated first when it is not there.

    A folder appears under its name complete or not at all: it is made beside its place and then
    renamed, so a kill leaves nothing that is believed later, and of two processes at once the
    slower one discards its own copy.

    Raises:
        UserError: a number of images is impossible, or ``root`` cannot be written.
    """
    sizes = {"train_images": train_images, "val_images": val_images, "test_images": test_images}
    folder = (
        root / f"scenes-v{GENERATOR_VERSION}-seed{seed}-{train_images}-{val_images}-{test_images}"
    )
    _check_sizes(sizes)
    if folder.is_dir():
        return folder
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        write_scenes(draft, seed=seed, **sizes)
        draft.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster, with the same bytes
            raise UserError(
                f"{folder}: the built-in pictures cannot be written there ({error.strerror}): "
                "point data.root at a folder you may write to"
            ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _check_sizes(sizes: dict[str, int]) -> None:
    wrong = [f"data.{name}={size}" for name, size in sizes.items() if size < 0]
    if wrong or not any(sizes.values()):
        shown = ", ".join(wrong or [f"data.{name}=0" for name in sizes])
        raise UserError(f"{shown}: give numbers of images that are 0 or more, and one above 0")


def write_scenes(
    folder: Path, *, seed: int, train_images: int, val_images: int, test_images: int
) -> None:
    """Draw and describe a data set into the new folder ``folder``, about 100 pictures a second.

    A picture depends on its seed, split and number alone: a larger data set continues a smaller
    one. The bytes are the same for the same arguments and the same releases of Pillow and numpy.
    A split of no images gets no list.

    Raises:
        FileExistsError: ``folder`` is there already.
    """
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    (folder / TEXT_FOLDER).mkdir()
    sizes: dict[Split, int] = {"train": train_images, "val": val_images, "test": test_images}
    token_lines = []
    for split, size in sizes.items():
        names = [f"{split}_{index:06d}.jpg" for index in range(size)]
        for index, name in enumerate(names):
            captions = _write_picture(folder / IMAGE_FOLDER / name, seed, split, index)
            token_lines += [f"{name}#{line}\t{caption}" for line, caption in enumerate(captions)]
        if names:
            _write_lines(folder / TEXT_FOLDER / SPLIT_FILES[split], names)
    _write_lines(folder / TEXT_FOLDER / TOKEN_FILE, token_lines)


def _write_picture(path: Path, seed: int, split: Split, index: int) -> tuple[str, ...]:
    """Draw one picture to ``path``; returns its captions."""
    scene = imagine(seed=seed, split=split, index=index)
    # Streams of their own: a change to the drawing changes no caption, and the other way round.
    picture = draw(scene, random.Random(f"{seed}/{split}/{index}/drawing"))
    picture.save(path, quality=90)
    return describe(scene, random.Random(f"{seed}/{split}/{index}/captions"))


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
