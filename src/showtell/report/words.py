"""The section on the language of captions: statistics beside the references', lengths, repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from showtell.metrics.language import WordStatistics, caption_words, figure_text, reference_words
from showtell.report.charts import Chart, histogram
from showtell.report.results import unfinished_share
from showtell.runs import VOCABULARY
from showtell.text.vocabulary import Vocabulary
from showtell.types import CaptionData, Split


@dataclass(frozen=True)
class WordsSection:
    """The content of the section.

    Attributes:
        figures: name, value of the model's captions, value of the references ("" where it has no
            meaning).
        has_people: whether references are available to compare with.
        most_frequent: captions used more than once with their counts.
        lengths: histogram of caption lengths in words, beside that of the references.
    """

    figures: tuple[tuple[str, str, str], ...]
    has_people: bool
    most_frequent: tuple[tuple[str, int], ...]
    lengths: Chart | None


def words_section(
    run_folder: Path, split: Split, captions: Mapping[str, str], data: CaptionData | None
) -> WordsSection | None:
    """The section about the ``captions`` of a split; None if there are none."""
    if not captions:
        return None
    references = _references(captions, data)
    training = [c for i in data.split("train") for c in i.captions] if data and references else None
    vocabulary = _vocabulary(run_folder)
    written = caption_words(captions, references or None, training=training, vocabulary=vocabulary)
    written = replace(written, unfinished=unfinished_share(run_folder, split))
    if not references:
        return WordsSection(_rows(written, None), False, written.most_frequent, None)
    people = reference_words(references, training=training, vocabulary=vocabulary)
    title = "Words in a caption"
    chart = histogram(title, written.length_shares, people.length_shares, x_name="words")
    return WordsSection(_rows(written, people), True, written.most_frequent, chart)


def _references(
    captions: Mapping[str, str], data: CaptionData | None
) -> dict[str, tuple[str, ...]]:
    """The references of the captioned images, as far as the data set is available and has them."""
    images = data.images if data else ()
    return {i.image_id: i.captions for i in images if i.image_id in captions}


def _vocabulary(run_folder: Path) -> tuple[str, ...] | None:
    path = run_folder / VOCABULARY
    return Vocabulary.load(path).words if path.is_file() else None


def _rows(
    written: WordStatistics, people: WordStatistics | None
) -> tuple[tuple[str, str, str], ...]:
    theirs = people.figures() if people else {}
    return tuple(
        (name, figure_text(name, value), figure_text(name, theirs[name]) if name in theirs else "")
        for name, value in written.figures().items()
    )
