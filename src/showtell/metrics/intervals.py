"""How sure a score is: bootstrap intervals over images, and the paired test between two runs.

Images are drawn with replacement and the corpus score of each draw is computed exactly from
summed statistics (Koehn 2004, "Statistical significance tests for machine translation
evaluation"). CIDEr keeps the document frequencies of the whole set in every draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from showtell.metrics.inputs import ScoringError
from showtell.metrics.scores import CaptionScores
from showtell.metrics.statistics import CORPUS_SCORES, Array

_DRAWS_AT_ONCE = 100  # bounds memory: 100 x 40,504 counts of COCO's validation images are 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """The central 95 % (or ``level``) of the scores of resampled sets."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second minus first, its interval, and how easily chance alone would bring as much.

    ``p_value`` is two-sided: twice the share of draws in which the difference has the other sign,
    never below 1 / (samples + 1).
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap(
    scores: CaptionScores, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """The interval of each corpus score under resampling of the images."""
    draws = _resampled(scores, samples=samples, seed=seed)
    return {name: Interval(*_central(values, level)) for name, values in draws.items()}


def compare(
    first: CaptionScores,
    second: CaptionScores,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """The paired bootstrap test of two sets of captions of the same images.

    Raises:
        ScoringError: the two were not scored on the same images against the same references.
    """
    if (first.images, first.references_sha256) != (second.images, second.references_sha256):
        raise ScoringError(
            "the two were scored on different images or references: score both on one split"
        )
    draws = _resampled(first, samples=samples, seed=seed)
    others = _resampled(second, samples=samples, seed=seed)
    return {
        name: _comparison(second.scores[name] - first.scores[name], others[name] - values, level)
        for name, values in draws.items()
        if name in others
    }


def _comparison(difference: float, draws: Array, level: float) -> Comparison:
    reversals = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    p_value = min(1.0, 2 * (reversals + 1) / (len(draws) + 1))
    return Comparison(difference, *_central(draws, level), p_value)


def _central(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(scores: CaptionScores, *, samples: int, seed: int) -> Mapping[str, Array]:
    """Score name -> the corpus scores [samples] of resampled sets."""
    parts = [
        {
            name: values
            for metric, statistics in scores.statistics.items()
            for name, values in CORPUS_SCORES[metric](counts @ statistics).items()
        }
        for counts in _draws(scores.images, samples=samples, seed=seed)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draws(images: int, *, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [draws, images] of how often each image was drawn; equal seeds give equal draws."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _DRAWS_AT_ONCE):
        draws = min(_DRAWS_AT_ONCE, samples - start)
        yield generator.multinomial(images, np.full(images, 1 / images), size=draws)
