"""The nouns every floor shares: a captioned image, a data set of them, a rejected item."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# What an encoder gives of an image: one vector (D,), or one per region of the picture (R, D).
FeatureKind = Literal["pooled", "grid"]

# The pictures that are read, by Pillow's names of their formats; others are refused by name.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One photograph with the captions people wrote for it.

    ``image_id`` is the file name (or the path relative to the image folder, with ``/``), the key
    under which features, captions and scores of this image are stored everywhere.
    ``captions`` are the raw sentences, never cleaned. ``split`` is None for an image that belongs
    to no split: it is kept, counted and never trained or scored on.
    """

    image_id: str
    path: Path
    captions: tuple[str, ...]
    split: Split | None


@dataclass(frozen=True, slots=True)
class Rejection:
    """One input item that was not used: what it was, where it stood and why.

    ``reason`` is a kind of fault, then, after a colon, what is particular to this item.
    ``harmless`` marks an item whose loss costs nothing, such as captions of an image that is in
    no split and has no file; every other rejection stops the reading unless the user allows it.
    """

    item: str
    source: Path
    line: int | None  # 1-based; None where the source has no lines
    reason: str
    harmless: bool = False

    @property
    def kind(self) -> str:
        """The reason without its particulars, the same for all items with the same fault."""
        return self.reason.partition(":")[0]

    @property
    def where(self) -> str:
        """``file:line``, or the file alone."""
        return str(self.source) if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class CaptionData:
    """A data set as read from disk: what was accepted, what was rejected, and from which files.

    ``origin`` maps each text file that was read (path relative to the root) to its SHA-256, so
    that a run can say exactly which captions and splits it was trained on. ``notes`` are things
    the user should be told aloud, such as a split we drew ourselves.
    """

    name: str
    images: tuple[CaptionedImage, ...]
    rejected: tuple[Rejection, ...] = ()
    origin: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def split(self, name: Split) -> tuple[CaptionedImage, ...]:
        """The images of one split, in file order; empty when the data set lacks that split."""
        return tuple(image for image in self.images if image.split == name)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that hold at least one image, in the order train, val, test."""
        present = {image.split for image in self.images}
        return tuple(name for name in SPLITS if name in present)
