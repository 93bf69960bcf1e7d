"""Bootstrap intervals over images, and the paired bootstrap test of two captioners.

Images are drawn with replacement, and the corpus score of each draw is computed exactly from
summed statistics (Koehn 2004, "Statistical significance tests for machine translation
evaluation"). CIDEr keeps the document frequencies of the whole set in every draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from showtell.metrics.inputs import ScoringError
from showtell.metrics.statistics import Array, CaptionStatistics

_DRAWS_AT_ONCE = 100  # bounds memory: 100 x 40,504 counts, for COCO's validation images, are 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """The central 95 % (or ``level``) of the scores of bootstrap samples."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference second minus first, its interval and its p-value.

    ``p_value`` is two-sided: twice the fraction of draws in which the difference has the other
    sign, at least 2 / (samples + 1).
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class _Resampled:
    """A training's corpus scores, and those of each bootstrap sample: name -> [samples]."""

    scores: dict[str, float]
    draws: dict[str, Array]


def bootstrap(
    statistics: CaptionStatistics, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """The bootstrap interval of each corpus score, over images."""
    (resampled,) = _resampled([statistics], samples=samples, seed=seed)
    return {name: Interval(*_central(values, level)) for name, values in resampled.draws.items()}


def compare(
    first: Sequence[CaptionStatistics],
    second: Sequence[CaptionStatistics],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """The paired bootstrap test of two captioners on the same images, for each common score.

    A captioner is given by its trainings, which differ only by seed; its score is their mean. Each
    draw scores all trainings on the same resampled images. With n and m trainings and n + m > 2, a
    draw also adds seed noise to the difference: s t sqrt(1/n + 1/m), with s the pooled standard
    deviation of the scores within each captioner, and t drawn from Student's distribution with
    n + m - 2 degrees of freedom. (Resampling two or three seeds like images would find differences
    between equal captioners far too often.)

    Raises:
        ScoringError: not all were scored on the same images against the same references.
    """
    (comparisons,) = compare_each(first, [second], samples=samples, seed=seed, level=level)
    return comparisons


def compare_each(
    first: Sequence[CaptionStatistics],
    others: Sequence[Sequence[CaptionStatistics]],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Comparison]]:
    """``compare`` the first captioner with each of the others, on the same draws of images.

    Every training is resampled only once, whatever the number of comparisons.
    """
    resampled = _resampled(
        _aligned([*first, *chain.from_iterable(others)]), samples=samples, seed=seed
    )
    base, rest = resampled[: len(first)], iter(resampled[len(first) :])
    return [
        _compare(base, list(islice(rest, len(other))), samples=samples, seed=seed, level=level)
        for other in others
    ]


def _compare(
    first: Sequence[_Resampled],
    second: Sequence[_Resampled],
    *,
    samples: int,
    seed: int,
    level: float,
) -> dict[str, Comparison]:
    n, freedom = len(first), len(first) + len(second) - 2
    # A stream independent of the one that draws the images.
    generator = np.random.default_rng([seed, 1])
    luck = generator.standard_t(freedom, size=samples) if freedom else np.zeros(samples)
    trainings = [*first, *second]
    comparisons = {}
    for name in _common_names(trainings):
        whole = np.array([each.scores[name] for each in trainings])
        values = np.column_stack([each.draws[name] for each in trainings])
        draws = _difference(values, n) + luck * _seed_error(whole[:n], whole[n:])
        comparisons[name] = _comparison(float(_difference(whole, n)), draws, level)
    return comparisons


def _common_names(trainings: Sequence[_Resampled]) -> list[str]:
    return [n for n in trainings[0].scores if all(n in each.scores for each in trainings)]


def _aligned(trainings: Sequence[CaptionStatistics]) -> list[CaptionStatistics]:
    """All statistics with their rows in the order of the first."""
    first = trainings[0]
    if not all(training.is_comparable(first) for training in trainings):
        raise ScoringError(
            "the captions were scored on different images or references: score all on one split"
        )
    return [training.in_order_of(first.image_ids) for training in trainings]


def _difference(scores: Array, n: int) -> Array:
    """[..., n + m] -> [...]: the mean of the last m minus the mean of the first n."""
    difference: Array = scores[..., n:].mean(axis=-1) - scores[..., :n].mean(axis=-1)
    return difference


def _seed_error(first: Array, second: Array) -> float:
    """The standard error of the difference of the means of [n] and [m], of equal variance."""
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
) -> list[_Resampled]:
    """Corpus scores of each training, and its scores on common bootstrap samples."""
    blocks: list[list[dict[str, Array]]] = [[] for _ in trainings]
    for counts in _draws(len(trainings[0].image_ids), samples=samples, seed=seed):
        for scored, training in zip(blocks, trainings, strict=True):
            scored.append(training.scores_of(counts))
    return [
        _Resampled(
            training.scores,
            {name: np.concatenate([block[name] for block in scored]) for name in scored[0]},
        )
        for training, scored in zip(trainings, blocks, strict=True)
    ]


def _draws(images: int, *, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [draws, images] of counts of each image; equal seeds give equal draws."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _DRAWS_AT_ONCE):
        draws = min(_DRAWS_AT_ONCE, samples - start)
        yield generator.multinomial(images, np.full(images, 1 / images), size=draws)
