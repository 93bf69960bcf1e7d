"""Which image is in which split: from split lists, or drawn at random without them."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from showtell.data.image_folders import name_fault
from showtell.data.text_files import encoding_fault, excerpt, read_text
from showtell.errors import UserError
from showtell.types import Rejection, Split

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "restval": "train",  # COCO validation images that Karpathy's split adds to training
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
# An image in two splits stays in the one for evaluation: test sets must be complete to compare.
_STRONGEST_FIRST: tuple[Split, ...] = ("test", "val", "train")
# Sizes of the official Flickr8k split, which a draw from its 8,091 images reproduces exactly.
_FLICKR8K_IMAGES, _FLICKR8K_TRAIN, _FLICKR8K_VAL = 8091, 6000, 1000


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One line of a split list."""

    image: str
    split: Split
    source: Path
    line: int


@dataclass(frozen=True, slots=True)
class SplitList:
    """A split list as read: images, rejected lines, SHA-256 and notes for the user."""

    path: Path
    images: tuple[ListedImage, ...]
    rejected: tuple[Rejection, ...]
    sha256: str
    notes: tuple[str, ...]


def read_split_list(path: Path, split: Split) -> SplitList:
    """Read a list of image names, one per line.

    Raises:
        UserError: the file cannot be read or names no image.
    """
    text = read_text(path)
    images: dict[str, ListedImage] = {}
    rejected = []
    for number, line in enumerate(text.lines, 1):
        name = posixpath.normpath(line.strip())
        if not line.strip():
            rejected.append(Rejection("", path, number, "blank line", harmless=True))
        elif fault := encoding_fault(line) or name_fault(name):
            rejected.append(Rejection(excerpt(name), path, number, fault))
        elif name in images:
            reason = "listed twice in the same split"
            rejected.append(Rejection(name, path, number, reason, harmless=True))
        else:
            images[name] = ListedImage(name, split, path, number)
    if not images:
        raise UserError(f"{path} names no image: get a fresh copy or delete the list")
    return SplitList(path, tuple(images.values()), tuple(rejected), text.sha256, text.notes)


def split_named(word: str) -> Split | None:
    """The split that a word stands for (``dev`` is val, ``restval`` is train), or None."""
    return _SPLIT_NAMES.get(word.strip().lower())


def settle(claims: Iterable[tuple[str, Split]]) -> dict[str, Split]:
    """One split for each image: if several claim it, test wins over val, and val over train."""
    membership: dict[str, Split] = {}
    for image, split in claims:
        held = membership.setdefault(image, split)
        membership[image] = min(held, split, key=_STRONGEST_FIRST.index)
    return membership


def draw_splits(images: Collection[str], *, seed: int) -> dict[str, Split]:
    """Draw train, val and test by image, in the proportions of Flickr8k (6000 : 1000 : 1091).

    Images are ordered by a hash of the seed and their name, so that the order of the input does
    not matter, and adding or removing an image moves hardly any other.

    Raises:
        UserError: fewer than three images; each split needs one.
    """
    total = len(images)
    if total < len(_STRONGEST_FIRST):
        raise UserError(
            f"{total} images are too few to draw train, val and test from: "
            "name the split of each image in the data set"
        )
    val = max(1, round(total * _FLICKR8K_VAL / _FLICKR8K_IMAGES))
    train = min(round(total * _FLICKR8K_TRAIN / _FLICKR8K_IMAGES), total - val - 1)
    drawn = sorted(images, key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).digest())
    return {
        image: "train" if place < train else "val" if place < train + val else "test"
        for place, image in enumerate(drawn)
    }


def absent_splits(membership: Mapping[str, Split], present: Collection[str]) -> frozenset[Split]:
    """The splits of which no image is present, such as a test set held back.

    A split of a single image never counts: that image is missing, not its split.
    """
    found = {membership[image] for image in present if image in membership}
    sizes: dict[Split, int] = {}
    for split in membership.values():
        sizes[split] = sizes.get(split, 0) + 1
    return frozenset(split for split, size in sizes.items() if size > 1 and split not in found)
