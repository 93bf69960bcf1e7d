"""Validation of captions and references, before any metric uses them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from showtell.errors import UserError


class ScoringError(UserError):
    """The captions or references cannot be scored as they are."""


class MissingCaptionError(ScoringError):
    """An image has references but no caption."""


class MissingReferencesError(ScoringError):
    """An image has a caption but no reference to compare it with."""


class DuplicateCaptionError(ScoringError):
    """An image has more than one caption."""


class NotTextError(ScoringError):
    """A caption, a reference or an image id is not a string."""


class UnknownMetricError(ScoringError):
    """The name of a metric is unknown."""


def check_captions(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """Raise an error for anything that would be scored wrongly or against the wrong image.

    Image ids are file names, or integers as in COCO. They are compared as text: captions may have
    as text what the references have as numbers.

    Raises:
        NotTextError: a caption or reference is not a string, or the references of an image are
            one string instead of a sequence of them.
        DuplicateCaptionError: two ids differ only in type.
        MissingCaptionError: an image with references has no caption.
        MissingReferencesError: an image with a caption has no reference.
        ScoringError: there is nothing to score.
    """
    _check_captions_text(captions)
    check_references(references)
    if repeated := _repeated(map(str, captions)) or _repeated(map(str, references)):
        raise DuplicateCaptionError(
            f"{_named(repeated)} given as a number and as text: keep one of the two"
        )
    captioned = set(map(str, captions))
    if missing := [i for i in references if str(i) not in captioned]:
        raise MissingCaptionError(
            f"{_named(missing)} without a caption: caption them, or leave their references out"
        )
    described = {str(i) for i, sentences in references.items() if sentences}
    if missing := [i for i in captions if str(i) not in described]:
        raise MissingReferencesError(
            f"{_named(missing)} without a reference: give at least one, or leave the caption out"
        )
    if not captions:
        raise ScoringError("there are no captions to score: give at least one image")


def check_references(references: Mapping[str, Sequence[str]]) -> None:
    """Check that references map image ids to sequences of strings.

    Raises:
        NotTextError: an id, a sequence or a reference has another type.
    """
    _check_ids(references)
    for image_id, sentences in references.items():
        if isinstance(sentences, str) or not isinstance(sentences, Sequence):
            raise NotTextError(
                f"the references of {image_id} are {_kind(sentences)}: give a list of strings"
            )
        for sentence in sentences:
            if not isinstance(sentence, str):
                raise NotTextError(
                    f"a reference of {image_id} is {_kind(sentence)}: give strings only"
                )


def _check_captions_text(captions: Mapping[str, str]) -> None:
    _check_ids(captions)
    for image_id, caption in captions.items():
        if not isinstance(caption, str):
            raise NotTextError(f"the caption of {image_id} is {_kind(caption)}: give one string")


def _check_ids(image_ids: Iterable[object]) -> None:
    for image_id in image_ids:
        # Integral includes NumPy's integers, but also bool, which can only be a mistake.
        if not isinstance(image_id, str | Integral) or isinstance(image_id, bool):
            raise NotTextError(f"the image id {image_id!r} is no id: use the name of the file")


def read_captions(path: Path) -> dict[str, str]:
    """The captions of a COCO results file: a list of ``{"image_id": ..., "caption": ...}``.

    Raises:
        ScoringError: the file is missing or has another format.
        DuplicateCaptionError: an image occurs in it twice.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ScoringError(f"{path} does not exist: name a captions-*.json file") from error
    except ValueError as error:
        raise ScoringError(f"{path} is not JSON in UTF-8 ({error}): write it again") from error
    return captions_of(rows, source=str(path))


def captions_of(rows: Any, *, source: str) -> dict[str, str]:
    """Parsed COCO results as image id -> caption; numeric ids become text.

    Raises:
        ScoringError: ``rows`` has another format.
        NotTextError: an image id is neither text nor an integer.
        DuplicateCaptionError: an image occurs twice.
    """
    if not isinstance(rows, list) or not all(_is_result(row) for row in rows):
        raise ScoringError(
            f'{source} is not a list of {{"image_id": ..., "caption": ...}}: use the COCO '
            "results format"
        )
    _check_ids(row["image_id"] for row in rows)
    image_ids = [str(row["image_id"]) for row in rows]
    if repeated := _repeated(image_ids):
        raise DuplicateCaptionError(
            f"{_named(repeated)} more than once in {source}: keep one caption for each image"
        )
    return dict(zip(image_ids, (row["caption"] for row in rows), strict=True))


def _is_result(row: object) -> bool:
    return isinstance(row, dict) and "image_id" in row and isinstance(row.get("caption"), str)


def _repeated(image_ids: Iterable[str]) -> list[str]:
    return [image_id for image_id, count in Counter(image_ids).items() if count > 1]


def _named(image_ids: Iterable[str]) -> str:
    """``3 images (a.jpg, b.jpg, c.jpg)``; at most three are named."""
    listed = [str(image_id) for image_id in image_ids]
    names = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return f"{len(listed)} image{'s' if len(listed) > 1 else ''} ({names})"


def _kind(value: object) -> str:
    return "one string" if isinstance(value, str) else f"of type {type(value).__name__}"
