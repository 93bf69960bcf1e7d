"""How sure a score is: bootstrap intervals over images, and the paired test of two captioners.

Images are drawn with replacement and the corpus score of each draw is computed exactly from
summed statistics (Koehn 2004, "Statistical significance tests for machine translation
evaluation"). CIDEr keeps the document frequencies of the whole set in every draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from showtell.metrics.inputs import ScoringError
from showtell.metrics.statistics import Array, CaptionStatistics

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
    never below 2 / (samples + 1).
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap(
    statistics: CaptionStatistics, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """The interval of each corpus score under resampling of the images."""
    draws = _resampled([statistics], samples=samples, seed=seed)
    return {name: Interval(*_central(values, level)) for name, values in draws.items()}


def compare(
    first: Sequence[CaptionStatistics],
    second: Sequence[CaptionStatistics],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """The paired bootstrap test of two captioners on the same images, for each common score.

    A captioner is given by the captions of its trainings, which differ by their seeds only; its
    score is their mean. Every draw scores all of them on the same resampled images. With n and m
    trainings and n + m > 2, it also moves the difference by what other seeds might: s t
    sqrt(1/n + 1/m), with s the standard deviation of the scores within both, pooled, and t from
    Student's distribution of n + m - 2 degrees of freedom. (Resampling two or three seeds like
    the images finds differences between equals far too often.)

    Raises:
        ScoringError: they were not scored on the same images against the same references.
    """
    trainings = _aligned([*first, *second])
    n, freedom = len(first), len(trainings) - 2
    # Not the stream that draws the images.
    generator = np.random.default_rng([seed, 1])
    luck = generator.standard_t(freedom, size=samples) if freedom else np.zeros(samples)
    scores = [training.scores for training in trainings]
    comparisons = {}
    for name, values in _resampled(trainings, samples=samples, seed=seed).items():
        whole = np.array([each[name] for each in scores])
        draws = _difference(values, n) + luck * _seed_error(whole[:n], whole[n:])
        comparisons[name] = _comparison(float(_difference(whole, n)), draws, level)
    return comparisons


def _aligned(trainings: Sequence[CaptionStatistics]) -> list[CaptionStatistics]:
    """All with the rows in the order of the first."""
    first = trainings[0]
    if not all(training.is_comparable(first) for training in trainings):
        raise ScoringError(
            "the captions were scored on different images or references: score all on one split"
        )
    return [training.in_order_of(first.image_ids) for training in trainings]


def _difference(scores: Array, n: int) -> Array:
    """[..., n + m] -> [...]: the mean of the last m less the mean of the first n."""
    difference: Array = scores[..., n:].mean(axis=-1) - scores[..., :n].mean(axis=-1)
    return difference


def _seed_error(first: Array, second: Array) -> float:
    """The standard error of the difference of two means, [n] and [m], of one spread."""
    n, m = len(first), len(second)
    squares = n * np.var(first) + m * np.var(second)
    return float(np.sqrt(squares / max(n + m - 2, 1) * (1 / n + 1 / m)))


def _comparison(difference: float, draws: Array, level: float) -> Comparison:
    reversals = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    p_value = min(1.0, 2 * (reversals + 1) / (len(draws) + 1))
    return Comparison(difference, *_central(draws, level), p_value)


def _central(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    trainings: Sequence[CaptionStatistics], *, samples: int, seed: int
) -> dict[str, Array]:
    """Name of a common score -> the scores of resampled sets [samples, trainings]."""
    parts = []
    for counts in _draws(len(trainings[0].image_ids), samples=samples, seed=seed):
        each = [training.scores_of(counts) for training in trainings]
        common = [name for name in each[0] if all(name in scores for scores in each)]
        parts.append({name: np.column_stack([scores[name] for scores in each]) for name in common})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draws(images: int, *, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [draws, images] of how often each image was drawn; equal seeds give equal draws."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _DRAWS_AT_ONCE):
        draws = min(_DRAWS_AT_ONCE, samples - start)
        yield generator.multinomial(images, np.full(images, 1 / images), size=draws)
