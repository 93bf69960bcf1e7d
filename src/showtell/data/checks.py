"""The checks of `showtell doctor`: counts, checksums, faulty lines, faulty and duplicate images."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from showtell.config import build
from showtell.cores import available_cores
from showtell.data.image_folders import is_image_name
from showtell.types import PICTURE_FORMATS, SPLITS, CaptionData, CaptionedImage, Rejection

FLICKR8K_SHA256 = {
    "Flickr8k.token.txt": "1e1f3a371ba1a1bf742e6930521c037e046b2bf3fcc2390ba8405e0301ed7689",
    "Flickr_8k.trainImages.txt": "e330ddd5156a4c2d2e2b67bc587e70e588f2d132bd8a10dc54dcb71e58115d8e",
    "Flickr_8k.devImages.txt": "18ba829f47f6df1cb830bf7f0506e2ddf333818925299babbd1bbcaf50fdc504",
    "Flickr_8k.testImages.txt": "c0924146c131458ceba45da59670fe9520eadce1e5cafffa16a817672a9b1f17",
}
ORIGINAL = "original"
DIFFERENT = "differs from the original release"
_UNKNOWN = "no known checksum"
_NO_SPLIT = "none"


@dataclass(frozen=True, slots=True)
class Corrupt:
    """An image file that cannot be decoded, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Images with identical files; in different splits, they leak test data into training."""

    image_ids: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def leak(self) -> bool:
        """Whether the picture is in more than one split."""
        return len(set(self.splits) - {_NO_SPLIT}) > 1

    def __str__(self) -> str:
        """Each image with its split."""
        placed = zip(self.image_ids, self.splits, strict=True)
        return ", ".join(f"{image_id} in {split}" for image_id, split in placed)


@dataclass(frozen=True, slots=True)
class CaptionWords:
    """The number of words per caption, separated by white space."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True, slots=True)
class SplitCount:
    """The size of a split."""

    images: int
    captions: int


@dataclass(frozen=True)
class Examination:
    """Everything found out about a data set."""

    name: str
    splits: dict[str, SplitCount]
    words: CaptionWords
    checksums: dict[str, str]
    rejected: tuple[Rejection, ...]
    corrupt: tuple[Corrupt, ...]
    duplicates: tuple[Duplicates, ...]
    foreign: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def faults(self) -> tuple[Rejection, ...]:
        """The rejected items that are not harmless."""
        return tuple(rejection for rejection in self.rejected if not rejection.harmless)

    @property
    def healthy(self) -> bool:
        """Whether the data can be used as it is: no faults, corrupt images or leaks."""
        leaks = any(group.leak for group in self.duplicates)
        return not (self.faults or self.corrupt or leaks)

    def lines(self, *, examples: int = 10) -> list[str]:
        """The report as text, naming at most ``examples`` items of each kind."""
        images = sum(count.images for count in self.splits.values())
        captions = sum(count.captions for count in self.splits.values())
        lines = [f"{self.name}: {images} images, {captions} captions"]
        lines += [
            f"  {split:5} {count.images:6} images {count.captions:7} captions"
            for split, count in self.splits.items()
        ]
        harmless = len(self.rejected) - len(self.faults)
        lines.append(f"rejected: {len(self.rejected)} items, {harmless} of them harmless")
        words = self.words
        lines.append(f"words per caption: {words.least} to {words.most}, mean {words.mean:.1f}")
        lines += [f"{file}: {verdict}" for file, verdict in self.checksums.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += self._rejected_lines(examples)
        lines += self._image_lines(examples)
        lines.append("healthy" if self.healthy else "not healthy: see the items marked with !")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain values for JSON: every item, not examples."""
        report: dict[str, Any] = asdict(self)
        report["rejected"] = [
            asdict(rejection) | {"source": str(rejection.source), "kind": rejection.kind}
            for rejection in self.rejected
        ]
        report["corrupt"] = [{"path": str(c.path), "reason": c.reason} for c in self.corrupt]
        report["duplicates"] = [asdict(group) | {"leak": group.leak} for group in self.duplicates]
        report["foreign"] = [str(path) for path in self.foreign]
        return report | {"healthy": self.healthy}

    def _rejected_lines(self, examples: int) -> list[str]:
        groups: dict[tuple[bool, str], list[str]] = {}
        for rejection in self.rejected:
            particulars = rejection.reason.removeprefix(rejection.kind)
            described = f"{rejection.where}: {rejection.item}{particulars}"
            groups.setdefault((rejection.harmless, rejection.kind), []).append(described)
        lines = []
        for (harmless, kind), items in groups.items():
            mark = "harmless" if harmless else "!"
            lines += [f"{mark} rejected, {kind}: {len(items)}", *_some(items, examples)]
        return lines

    def _image_lines(self, examples: int) -> list[str]:
        leaks = [str(group) for group in self.duplicates if group.leak]
        equals = [str(group) for group in self.duplicates if not group.leak]
        corrupt = [f"{one.path}: {one.reason}" for one in self.corrupt]
        kinds = [
            ("! images that cannot be decoded", corrupt),
            ("! pictures that stand in more than one split", leaks),
            ("pictures that stand twice in one split", equals),
            ("image files that no caption names", [str(path) for path in self.foreign]),
        ]
        return [
            line
            for title, items in kinds
            if items
            for line in (f"{title}: {len(items)}", *_some(items, examples))
        ]


def examine_config(node: Mapping[str, Any]) -> Examination:
    """Read the data set of a node of ``conf/data``, skipping faulty items, and examine it.

    Raises:
        UserError: nothing can be read at all.
    """
    data: CaptionData = build("data", {**node, "skip_rejected": True})
    return examine(data)


def examine(data: CaptionData) -> Examination:
    """Decode every image, find duplicates, count, and compare checksums.

    Args:
        data: read with ``skip_rejected``, so that ``data.rejected`` is complete.
    """
    corrupt, digests = _look_at_images(data.images)
    return Examination(
        name=data.name,
        splits=_split_counts(data.images),
        words=_caption_words(data.images),
        checksums={file: _verdict(file, sha256) for file, sha256 in data.origin.items()},
        rejected=data.rejected,
        corrupt=corrupt,
        duplicates=_duplicates(data.images, digests),
        foreign=_foreign(data),
        notes=data.notes,
    )


def decode_fault(content: bytes) -> str | None:
    """Why a picture cannot be decoded completely, or None if it can."""
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as image:
            image.load()
    except UnidentifiedImageError:
        return "no JPEG, PNG or WebP picture" if content else "an empty file"
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        return str(error) or type(error).__name__
    return None


def _look_at_images(
    images: Sequence[CaptionedImage],
) -> tuple[tuple[Corrupt, ...], list[str | None]]:
    """The files that cannot be decoded, and each file's SHA-256 (None if it cannot be read)."""
    corrupt = []
    digests = []
    # Threads suffice: Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(available_cores()) as pool:
        looks = pool.map(_look_at, (image.path for image in images))
        console = Console(stderr=True)
        shown = track(
            looks,
            "checking images",
            total=len(images),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        for image, (digest, fault) in zip(images, shown, strict=True):
            digests.append(digest)
            if fault is not None:
                corrupt.append(Corrupt(image.path, fault))
    return tuple(corrupt), digests


def _look_at(path: Path) -> tuple[str | None, str | None]:
    """(SHA-256 of the file, why it cannot be decoded), each None if there is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    return hashlib.sha256(content).hexdigest(), decode_fault(content)


def _duplicates(
    images: Sequence[CaptionedImage], digests: Sequence[str | None]
) -> tuple[Duplicates, ...]:
    groups: dict[str, list[CaptionedImage]] = {}
    for image, digest in zip(images, digests, strict=True):
        if digest is not None:
            groups.setdefault(digest, []).append(image)
    return tuple(
        Duplicates(
            image_ids=tuple(image.image_id for image in group),
            splits=tuple(image.split or _NO_SPLIT for image in group),
        )
        for group in groups.values()
        if len(group) > 1
    )


def _split_counts(images: Sequence[CaptionedImage]) -> dict[str, SplitCount]:
    members = Counter(image.split or _NO_SPLIT for image in images)
    captions = Counter[str]()
    for image in images:
        captions[image.split or _NO_SPLIT] += len(image.captions)
    names = [*SPLITS, _NO_SPLIT] if members[_NO_SPLIT] else SPLITS
    return {name: SplitCount(members[name], captions[name]) for name in names}


def _caption_words(images: Sequence[CaptionedImage]) -> CaptionWords:
    lengths = [len(caption.split()) for image in images for caption in image.captions]
    return CaptionWords(min(lengths), sum(lengths) / len(lengths), max(lengths))


def _verdict(file: str, sha256: str) -> str:
    known = FLICKR8K_SHA256.get(PurePosixPath(file).name)
    if known is None:
        return _UNKNOWN
    return ORIGINAL if sha256 == known else DIFFERENT


def _foreign(data: CaptionData) -> tuple[Path, ...]:
    """Image files in the data set's folders that no caption names, not even a rejected one."""
    named = {rejection.item.rpartition("#")[0] or rejection.item for rejection in data.rejected}
    named_files = {PurePosixPath(name).name for name in named}
    own = {image.path for image in data.images}
    return tuple(
        path
        for folder in sorted({path.parent for path in own})
        for path in sorted(folder.iterdir())
        if is_image_name(path.name) and path not in own and path.name not in named_files
    )


def _some(items: Sequence[str], examples: int) -> list[str]:
    shown = [f"    {item}" for item in items[:examples]]
    hidden = len(items) - len(shown)
    return [*shown, f"    and {hidden} more"] if hidden else shown
