"""What may be scored: captions and references checked before any metric sees them."""

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
    """A metric nobody here knows."""


def check_captions(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """Refuse anything that would score a caption wrongly or against the wrong image.

    An image id is a file name; the numbers COCO gives its images pass too. Ids are the same when
    their text is: a results file may give as text what the references give as numbers.

    Raises:
        NotTextError: a caption or reference is not a string, or the references of an image are
            one string instead of a sequence of them.
        DuplicateCaptionError: two ids are the same but for their type.
        MissingCaptionError, MissingReferencesError: the ids differ, or an image has no references.
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
    """Refuse references that are not strings in sequences, under ids.

    Raises:
        NotTextError: one of them is something else.
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
        # NumPy's integers are Integral too, and so is bool, which is never meant.
        if not isinstance(image_id, str | Integral) or isinstance(image_id, bool):
            raise NotTextError(f"the image id {image_id!r} is no id: use the name of the file")


def read_captions(path: Path) -> dict[str, str]:
    """The captions of a COCO results file: a list of ``{"image_id": ..., "caption": ...}``.

    Raises:
        ScoringError: no such file, or not of that form.
        DuplicateCaptionError: an image stands in it twice.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ScoringError(f"{path} does not exist: name a captions-*.json file") from error
    except ValueError as error:
        raise ScoringError(f"{path} is not JSON in UTF-8 ({error}): write it again") from error
    return captions_of(rows, source=str(path))


def captions_of(rows: Any, *, source: str) -> dict[str, str]:
    """COCO results (already parsed) as image id -> caption; ids that are numbers become text."""
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
    """``3 images (a.jpg, b.jpg, c.jpg)``, at most three by name."""
    listed = [str(image_id) for image_id in image_ids]
    names = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return f"{len(listed)} image{'s' if len(listed) > 1 else ''} ({names})"


def _kind(value: object) -> str:
    return "one string" if isinstance(value, str) else f"of type {type(value).__name__}"
