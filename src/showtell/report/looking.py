"""Where a model with attention looked for each word: a veil over the picture that lets it shine."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from showtell.caption import Look, load_run
from showtell.config import target_of
from showtell.errors import UserError
from showtell.report.gallery import Card
from showtell.vision.images import Preprocessing, load_image

# Share of light that the veil takes where the model does not look at all.
DARKNESS = 0.8
# A region shines in full from this many even shares on, even where none has more: attention that
# is spread evenly must look like it, not like its own noise.
FULL_LIGHT = 3.0


@dataclass(frozen=True, slots=True)
class WordView:
    """A word, the veil that shows where it was looked for (a data URI), and the same in words."""

    word: str
    veil: str
    description: str


@dataclass(frozen=True, slots=True)
class LookedAt:
    """A picture with a view for each word.

    ``ratio`` is width over height; ``left``, ``top``, ``width`` and ``height`` say in per cent
    which part of the picture the network saw, and thus where the veils lie.
    """

    card: Card
    ratio: float
    left: float
    top: float
    width: float
    height: float
    views: tuple[WordView, ...]


@dataclass(frozen=True, slots=True)
class Looking:
    """Some pictures with the attention of each word, or why there are none."""

    pictures: tuple[LookedAt, ...]
    problem: str | None


def looking_section(
    run_folder: Path, record: Mapping[str, Any], cards: Sequence[Card]
) -> Looking | None:
    """Where the run looked as it wrote the captions of ``cards``; None without attention."""
    readable = [card for card in cards if card.image]
    if not readable or not _attends(record):
        return None
    paths = [card.picture.path for card in readable]
    try:
        run = load_run(run_folder)
        looks = run.look(paths, [card.picture.caption for card in readable])
    except UserError as error:
        return Looking((), str(error))
    rule = run.encoder.preprocessing
    return Looking(tuple(map(partial(looked_at, rule), readable, looks)), None)


def _attends(record: Mapping[str, Any]) -> bool:
    try:
        return hasattr(target_of("model", record.get("model", {})), "attend")
    except (UserError, ImportError):
        return False


def looked_at(rule: Preprocessing, card: Card, look: Look) -> LookedAt:
    """The card's picture with the veil of each word over what ``rule`` let the network see."""
    image = load_image(card.picture.path)
    left, top, right, bottom = rule.view(image.width, image.height)
    across, down = 100 / image.width, 100 / image.height
    return LookedAt(
        card,
        ratio=image.width / image.height,
        left=left * across,
        top=top * down,
        width=(right - left) * across,
        height=(bottom - top) * down,
        views=tuple(
            WordView(word, veil(shares), describe(shares))
            for word, shares in zip(look.words, look.weights, strict=True)
        ),
    )


def veil(shares: npt.NDArray[np.float32]) -> str:
    """Attention (rows, columns) as a black image of that size, clear where the model looks.

    The browser stretches it smoothly over the picture: a hundred bytes a word.
    """
    light = np.minimum(shares / max(float(shares.max()), FULL_LIGHT / shares.size), 1.0)
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., 3] = np.round(255 * DARKNESS * (1.0 - light))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def describe(shares: npt.NDArray[np.float32]) -> str:
    """The ninth of the picture that got most of the attention, with its share."""
    rows, columns = shares.shape
    thirds = np.zeros((3, 3))
    for (row, column), share in np.ndenumerate(shares):
        thirds[3 * row // rows, 3 * column // columns] += share
    row, column = divmod(int(thirds.argmax()), 3)
    place = f"{('top', 'middle', 'bottom')[row]} {('left', 'centre', 'right')[column]}"
    return f"most at the {place}, {100 * thirds.max():.0f} %"
