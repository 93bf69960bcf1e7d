"""Combines captions, splits and image files into a `CaptionData`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from showtell.data.caption_files import CaptionFile, CaptionLine
from showtell.data.image_folders import ImageFolders
from showtell.data.splits import ListedImage, SplitList, absent_splits, draw_splits, settle
from showtell.errors import UserError
from showtell.types import SPLITS, CaptionData, CaptionedImage, Rejection, Split

# The original Flickr8k has five captions for this name, which has no file and is in no split.
FLICKR8K_ORPHAN = "2258277193_586949ec62.jpg.1"

MISSING = "the image file is missing"
IN_TWO_SPLITS = "the image is in two splits"
_OTHERS = "the image file is that of another name, which differs in the case of its extension"
_ABSENT_SPLIT = "none of the images of its split is here"
_IN_NO_SPLIT = "the image is in no split and has no file"
_NO_CAPTION = "listed in a split but without a usable caption"


@dataclass(frozen=True, slots=True)
class _Placing:
    """The split and the file of each image, and the splits whose images are all absent.

    ``others`` are images whose file is that of another image.
    """

    split: dict[str, Split]
    absent: frozenset[Split]
    path: dict[str, Path]
    others: frozenset[str]


def assemble(
    captions: CaptionFile,
    lists: Sequence[SplitList],
    folders: ImageFolders,
    *,
    name: str,
    split_seed: int,
) -> CaptionData:
    """Group the captions by image, give each image its file and its split, reject the rest.

    Splits come from the split lists if there are any, else from the caption file; if neither has
    any, they are drawn at random by image. Nothing is dropped silently: each line of the caption
    file becomes a caption or a rejection, each line of a list a membership or a rejection.

    Raises:
        UserError: no image can be used.
    """
    listed = [entry for split_list in lists for entry in split_list.images]
    placing = _placing(captions, listed, folders)
    grouped: dict[str, list[str]] = {}
    unused = []
    for line in captions.lines:
        if (rejection := _caption_fault(line, placing, captions.path)) is not None:
            unused.append(rejection)
        else:
            grouped.setdefault(line.image, []).append(line.caption)
    rejected = (
        *captions.rejected,
        *(rejection for split_list in lists for rejection in split_list.rejected),
        *(fault for entry in listed if (fault := _list_fault(entry, placing, grouped))),
        *unused,
    )
    if not grouped:
        raise _nothing_usable(captions, rejected, folders)
    images = tuple(
        CaptionedImage(image, placing.path[image], tuple(sentences), placing.split.get(image))
        for image, sentences in grouped.items()
    )
    notes = [*captions.notes, *(note for split_list in lists for note in split_list.notes)]
    notes += _placing_notes(placing, folders)
    if not placing.split:
        images = _with_drawn_splits(images, captions, split_seed)
        notes.append(_draw_note(images, split_seed))
    return CaptionData(name=name, images=images, rejected=rejected, notes=tuple(notes))


def _placing(
    captions: CaptionFile, listed: Sequence[ListedImage], folders: ImageFolders
) -> _Placing:
    if listed:
        split = settle((entry.image, entry.split) for entry in listed)
    else:
        split = settle((line.image, line.split) for line in captions.lines if line.split)
    names = dict.fromkeys([*(line.image for line in captions.lines), *split])
    found = {image: file for image in names if (file := folders.find(image)) is not None}
    # A file is the picture of one name: of the exact one, if several differ in the case of their
    # extension. Otherwise it could be in two splits.
    claims = Counter(found.values())
    path = {
        image: file
        for image, file in found.items()
        if claims[file] == 1 or image.endswith(file.name)
    }
    return _Placing(split, absent_splits(split, found), path, frozenset(found.keys() - path.keys()))


def _list_fault(
    entry: ListedImage, placing: _Placing, captioned: Collection[str]
) -> Rejection | None:
    """Why a line of a split list is not used, or None if it is."""
    split = placing.split[entry.image]
    harmless = False
    if split != entry.split:
        reason = f"{IN_TWO_SPLITS}: it stays in {split}"
    elif split in placing.absent:
        reason, harmless = _ABSENT_SPLIT, True
    elif entry.image in placing.others:
        reason = _OTHERS
    elif entry.image not in placing.path:
        reason = MISSING
    elif entry.image not in captioned:
        reason = _NO_CAPTION
    else:
        return None
    return Rejection(entry.image, entry.source, entry.line, reason, harmless)


def _caption_fault(line: CaptionLine, placing: _Placing, source: Path) -> Rejection | None:
    """Why a well-formed caption is not used, or None if it is."""
    split = placing.split.get(line.image)
    harmless = False
    if line.image in placing.path:
        if line.split in (None, split) or split is None:
            return None
        reason = f"{IN_TWO_SPLITS}: it stays in {split}"
    elif line.image in placing.others:
        reason = _OTHERS
    elif split in placing.absent:
        reason, harmless = _ABSENT_SPLIT, True
    # If no image has a split, splits are drawn, and a missing file is then a real loss.
    elif split is None and (placing.split or line.image == FLICKR8K_ORPHAN):
        reason, harmless = _IN_NO_SPLIT, True
    else:
        reason = MISSING
    return Rejection(line.item, source, line.line, reason, harmless)


def _nothing_usable(
    captions: CaptionFile, rejected: Sequence[Rejection], folders: ImageFolders
) -> UserError:
    named = {line.image for line in captions.lines}
    if named and not any(folders.find(image) for image in named):
        where = " or ".join(str(base) for base in folders.bases)
        return UserError(
            f"none of the {len(named)} images named in {captions.path} is in {where}: "
            "put the images there or point to the folder that holds them"
        )
    first = f", the first fault is at {rejected[0].where}: {rejected[0].reason}" if rejected else ""
    return UserError(
        f"{captions.path} holds no usable caption{first}: mend the file or get a fresh copy"
    )


def _placing_notes(placing: _Placing, folders: ImageFolders) -> list[str]:
    notes = [
        f"split {split} is absent: none of its images is here"
        for split in SPLITS
        if split in placing.absent
    ]
    recased = [image for image, path in placing.path.items() if not image.endswith(path.name)]
    if recased:
        notes.append(
            f"{len(recased)} images found under another case of their extension, "
            f"such as {recased[0]}: {placing.path[recased[0]].name}"
        )
    if foreign := folders.foreign():
        notes.append(f"{len(foreign)} image files are named by no caption, such as {foreign[0]}")
    return notes


def _with_drawn_splits(
    images: tuple[CaptionedImage, ...], captions: CaptionFile, seed: int
) -> tuple[CaptionedImage, ...]:
    """Draw from all images that the caption file names, so that a missing file moves no other."""
    named = {line.image for line in captions.lines} - {FLICKR8K_ORPHAN}
    drawn = draw_splits(named | {image.image_id for image in images}, seed=seed)
    split = tuple(replace(image, split=drawn[image.image_id]) for image in images)
    for lacking in SPLITS:
        if all(image.split != lacking for image in split):
            raise UserError(
                f"of the images that were drawn for {lacking} none is here: {len(images)} of "
                f"{len(drawn)} are; add the others, or remove their captions from {captions.path}"
            )
    return split


def _draw_note(images: tuple[CaptionedImage, ...], seed: int) -> str:
    sizes = [f"{split} {sum(image.split == split for image in images)}" for split in SPLITS]
    return f"no split lists: drew {', '.join(sizes)} by image with data.split_seed={seed}"


def evenly_spaced(images: Sequence[CaptionedImage], count: int) -> list[CaptionedImage]:
    """``count`` images, or all if there are fewer, evenly spaced from the first."""
    count = min(count, len(images))
    return [images[place * len(images) // count] for place in range(count)]
