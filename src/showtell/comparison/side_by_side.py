"""A few images with the captions that the best configurations write."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from showtell.comparison.rows import Row
from showtell.errors import UserError
from showtell.metrics.inputs import read_captions
from showtell.report.available_data import captioned, find_data_set
from showtell.report.gallery import Word, compared, embedded
from showtell.types import CaptionedImage, Split

SHOWN_CONFIGURATIONS, SHOWN_PICTURES = 3, 6


@dataclass(frozen=True, slots=True)
class Written:
    """A caption, with the number of its configuration in the table."""

    number: int
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """An image (None if unreadable), its references, and the caption of each configuration."""

    name: str
    image: str | None
    references: tuple[str, ...]
    captions: Sequence[Written]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """The images; ``problem`` says why there are none, or that the data set may be another one."""

    pictures: Sequence[Shown]
    problem: str | None


def side_by_side(rows: Sequence[Row], split: Split) -> SideBySide:
    """Random images with the captions of the best run that has some, in each of the first rows."""
    captions, problem = _captions(rows[:SHOWN_CONFIGURATIONS], split)
    if not captions:
        return SideBySide([], problem)
    best = rows[0].trainings[0]
    available = find_data_set(best.config, best.record)
    if available.data is None:
        return SideBySide([], available.problem)
    common = set.intersection(*(set(each) for each in captions.values()))
    images = captioned(dict.fromkeys(common, ""), available.data)
    if not images:
        return SideBySide([], "the data set holds none of the captioned pictures")
    drawn = random.Random(0).sample(images, min(SHOWN_PICTURES, len(images)))
    return SideBySide([_shown(image, captions) for image in drawn], available.problem)


def _captions(rows: Sequence[Row], split: Split) -> tuple[dict[int, dict[str, str]], str | None]:
    """Number of a row, from 1 -> its captions; and the problem to report if no row has any."""
    captions: dict[int, dict[str, str]] = {}
    problem = "no captions were written: `showtell evaluate` writes them"
    for number, row in enumerate(rows, start=1):
        files = (training.folder / f"captions-{split}.json" for training in row.trainings)
        path = next((file for file in files if file.is_file()), None)
        try:
            captions |= {number: read_captions(path)} if path else {}
        except UserError as error:
            problem = str(error)
    return captions, problem


def _shown(image: CaptionedImage, captions: Mapping[int, Mapping[str, str]]) -> Shown:
    return Shown(
        image.image_id,
        embedded(image.path),
        tuple(image.captions),
        [
            Written(number, compared(written[image.image_id], image.captions))
            for number, written in captions.items()
        ],
    )
