"""Types shared by all layers: a captioned image, a data set, a rejected item."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# The features of an image: one vector (D,), or one per region (R, D).
FeatureKind = Literal["pooled", "grid"]

# The supported picture formats, by Pillow's names; files of other formats are rejected.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image with its human captions.

    ``image_id`` is the file name (or the path relative to the image folder, with ``/``), the key
    under which features, captions and scores of this image are stored everywhere.
    ``captions`` are the raw sentences, never cleaned. ``split`` is None for an image in no split:
    it is kept and counted, but not used for training or scoring.
    """

    image_id: str
    path: Path
    captions: tuple[str, ...]
    split: Split | None


@dataclass(frozen=True, slots=True)
class Rejection:
    """An input item that was not used: what, where and why.

    ``reason`` is the kind of fault, optionally followed by a colon and details of this item.
    ``harmless`` marks an item that is no loss, such as a caption of an image that is in no split
    and has no file; any other rejection is an error unless the user allows it.
    """

    item: str
    source: Path
    line: int | None  # 1-based; None where the source has no lines
    reason: str
    harmless: bool = False

    @property
    def kind(self) -> str:
        """The reason without details, the same for all items with the same fault."""
        return self.reason.partition(":")[0]

    @property
    def where(self) -> str:
        """``file:line``, or just the file."""
        return str(self.source) if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class CaptionData:
    """A data set as read from disk: accepted images, rejected items, and source files.

    ``origin`` maps each text file that was read (path relative to the root) to its SHA-256, so
    that a run records exactly which captions and splits it was trained on. ``notes`` are messages
    for the user, for example that the splits were drawn at random.
    """

    name: str
    images: tuple[CaptionedImage, ...]
    rejected: tuple[Rejection, ...] = ()
    origin: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def split(self, name: Split) -> tuple[CaptionedImage, ...]:
        """The images of one split, in file order; empty if the data set lacks that split."""
        return tuple(image for image in self.images if image.split == name)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that hold at least one image, in the order train, val, test."""
        present = {image.split for image in self.images}
        return tuple(name for name in SPLITS if name in present)
