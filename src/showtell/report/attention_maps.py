"""Attention maps: for each word a veil over the image that is clear where the model looked."""

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

from showtell.caption import CaptionAttention, load_run
from showtell.config import target_of
from showtell.errors import UserError
from showtell.report.gallery import Card
from showtell.vision.images import Preprocessing, load_image

# Opacity of the veil where the model does not look at all.
DARKNESS = 0.8
# A region is fully clear from this many times the uniform weight on, if no region has more: evenly
# spread attention must look even, instead of having its noise amplified.
FULL_LIGHT = 3.0


@dataclass(frozen=True, slots=True)
class WordView:
    """A word, the veil of its attention (a data URI), and a description of it in words."""

    word: str
    veil: str
    description: str


@dataclass(frozen=True, slots=True)
class AttentionOverlay:
    """An image with an attention view for each word.

    ``ratio`` is width over height; ``left``, ``top``, ``width`` and ``height`` say in per cent
    which part of the image the network saw, and thus where the veils lie.
    """

    card: Card
    ratio: float
    left: float
    top: float
    width: float
    height: float
    views: tuple[WordView, ...]


@dataclass(frozen=True, slots=True)
class AttentionSection:
    """Some images with the attention of each word, or why there are none."""

    pictures: tuple[AttentionOverlay, ...]
    problem: str | None


def attention_section(
    run_folder: Path, record: Mapping[str, Any], cards: Sequence[Card]
) -> AttentionSection | None:
    """The run's attention for the captions of ``cards``; None if its model has no attention."""
    readable = [card for card in cards if card.image]
    if not readable or not _attends(record):
        return None
    paths = [card.picture.path for card in readable]
    try:
        run = load_run(run_folder)
        attentions = run.attend(paths, [card.picture.caption for card in readable])
    except UserError as error:
        return AttentionSection((), str(error))
    rule = run.encoder.preprocessing
    return AttentionSection(
        tuple(map(partial(attention_overlay, rule), readable, attentions)), None
    )


def _attends(record: Mapping[str, Any]) -> bool:
    try:
        return hasattr(target_of("model", record.get("model", {})), "attend")
    except (UserError, ImportError):
        return False


def attention_overlay(
    rule: Preprocessing, card: Card, attention: CaptionAttention
) -> AttentionOverlay:
    """The card's image with each word's veil over the part that ``rule`` let the network see."""
    image = load_image(card.picture.path)
    left, top, right, bottom = rule.view(image.width, image.height)
    across, down = 100 / image.width, 100 / image.height
    return AttentionOverlay(
        card,
        ratio=image.width / image.height,
        left=left * across,
        top=top * down,
        width=(right - left) * across,
        height=(bottom - top) * down,
        views=tuple(
            WordView(word, veil(shares), describe(shares))
            for word, shares in zip(attention.words, attention.weights, strict=True)
        ),
    )


def veil(shares: npt.NDArray[np.float32]) -> str:
    """Attention (rows, columns) as a black image of that size, clear where the model looks.

    It takes a hundred bytes a word; the browser scales it smoothly to the image's size.
    """
    light = np.minimum(shares / max(float(shares.max()), FULL_LIGHT / shares.size), 1.0)
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., 3] = np.round(255 * DARKNESS * (1.0 - light))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def describe(shares: npt.NDArray[np.float32]) -> str:
    """Name the ninth of the image (3 x 3) that gets most of the attention, with its share."""
    rows, columns = shares.shape
    thirds = np.zeros((3, 3))
    for (row, column), share in np.ndenumerate(shares):
        thirds[3 * row // rows, 3 * column // columns] += share
    row, column = divmod(int(thirds.argmax()), 3)
    place = f"{('top', 'middle', 'bottom')[row]} {('left', 'centre', 'right')[column]}"
    return f"most at the {place}, {100 * thirds.max():.0f} %"
