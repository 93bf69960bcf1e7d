"""Cards of images with their captions, which every page shows, and a page of nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from showtell.report.page import write_page
from showtell.text.tokenizer import tokenize
from showtell.vision.images import ImageError, load_image

# A card is about 300 px wide; a little more stays sharp on dense screens, and keeps a page of two
# dozen images below a megabyte.
THUMBNAIL_SIDE = 400
WEBP_QUALITY = 72


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to show: its generated caption, its references if any, its scores by name."""

    path: Path
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption; ``known`` if a reference has it or there are no references."""

    text: str
    known: bool


@dataclass(frozen=True, slots=True)
class Card:
    """An image as the template shows it; ``image`` is a data URI, None if unreadable."""

    picture: Picture
    image: str | None
    words: tuple[Word, ...]

    @property
    def description(self) -> str:
        """The image's alternative text: its first reference, else the name of the file."""
        return self.picture.references[0] if self.picture.references else self.picture.path.name


def write_gallery(pictures: Sequence[Picture], output: Path, title: str) -> Path:
    """Write a page of images with their captions to ``output``; return ``output``.

    An image that cannot be read keeps its card, which says so.

    Raises:
        UserError: the page cannot be written.
    """
    return write_page(output, "gallery.html", title=title, cards=cards(pictures))


def cards(pictures: Sequence[Picture]) -> list[Card]:
    """Cards with the images embedded and their captions compared with the references."""
    return [Card(p, embedded(p.path), compared(p.caption, p.references)) for p in pictures]


def embedded(path: Path) -> str | None:
    """The image as a small WebP in a data URI; None if it cannot be read."""
    try:
        image = load_image(path)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=WEBP_QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def compared(caption: str, references: Sequence[str]) -> tuple[Word, ...]:
    """The words of a caption, each marked with whether a reference has it."""
    said = {token for reference in references for token in tokenize(reference)}
    return tuple(
        Word(word, not references or said.issuperset(tokenize(word))) for word in caption.split()
    )
