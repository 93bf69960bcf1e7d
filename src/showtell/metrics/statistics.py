"""Corpus scores computed from sums of per-image statistics, for many resampled sets at once.

BLEU and METEOR are functions of summed counts; the other metrics are means of per-image scores. So
resampling images is a matrix product. Notation: I images, S sets, K statistics of a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLEU_ORDER = 4

METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr", "SPICE")  # names of metrics to request
SCORE_NAMES = (*(f"BLEU-{n + 1}" for n in range(BLEU_ORDER)), *METRICS[1:])  # names of their scores

# METEOR 1.5 for English (Denkowski & Lavie 2014, section 3): weights of exact, stem, synonym and
# paraphrase matches; weight of recall, exponent and strength of the fragmentation penalty, weight
# of content words.
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75


@dataclass(frozen=True, eq=False)
class CaptionStatistics:
    """Per-image statistics of a set of captions, sufficient for corpus scores of any resampling.

    ``arrays`` maps a metric to [I, K], one row for each of ``image_ids``. ``references_sha256`` and
    ``signature`` tell what it may be compared with.
    """

    image_ids: tuple[str, ...]
    arrays: dict[str, Array]
    references_sha256: str
    signature: str

    @property
    def scores(self) -> dict[str, float]:
        """Score name -> corpus score."""
        whole = np.ones((1, len(self.image_ids)), dtype=np.int64)
        return {name: float(values[0]) for name, values in self.scores_of(whole).items()}

    def scores_of(self, counts: NDArray[np.int64]) -> dict[str, Array]:
        """Corpus scores [S] by name, for sets given as counts [S, I] of each image."""
        weights = counts.astype(np.float64)  # converted once instead of in each product
        return {
            name: values
            for metric, rows in self.arrays.items()
            for name, values in CORPUS_SCORES[metric](weights @ rows).items()
        }

    def is_comparable(self, other: CaptionStatistics) -> bool:
        """Whether both have the same images, scored against the same references."""
        same_images = set(self.image_ids) == set(other.image_ids)
        return same_images and self.references_sha256 == other.references_sha256

    def in_order_of(self, image_ids: Sequence[str]) -> CaptionStatistics:
        """A copy with the rows in the order of ``image_ids``, which are the same images."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        rows = [row_of[image_id] for image_id in image_ids]
        arrays = {metric: array[rows] for metric, array in self.arrays.items()}
        return replace(self, image_ids=tuple(image_ids), arrays=arrays)


def bleu_statistics(cooked: Sequence[Mapping[str, Any]]) -> Array:
    """[I, 10]: length, closest reference length, possible and matched n-grams for n = 1..4.

    ``cooked`` has pycocoevalcap's counts for each caption.
    """
    return np.array(
        [
            [c["testlen"], _closest(c["reflen"], c["testlen"]), *c["guess"], *c["correct"]]
            for c in cooked
        ],
        dtype=np.float64,
    )


def _closest(lengths: Sequence[int], length: int) -> int:
    return min(lengths, key=lambda other: (abs(other - length), other))


def bleu(totals: Array) -> dict[str, Array]:
    """Summed `bleu_statistics` [S, 10] -> BLEU-1..4, each [S], exactly as in pycocoevalcap."""
    small, tiny = 1e-9, 1e-15
    words, closest, possible, matched = np.split(totals, [1, 2, 2 + BLEU_ORDER], axis=1)
    precisions = np.cumprod((matched + tiny) / (possible + small), axis=1)
    means = precisions ** (1 / np.arange(1, BLEU_ORDER + 1))
    ratio = (words + tiny) / (closest + small)
    means = means * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return {f"BLEU-{n + 1}": means[:, n] for n in range(BLEU_ORDER)}


def meteor_statistics(counts: Array) -> Array:
    """[I, 23]: the output of METEOR's SCORE command, adjusted so that it can be summed.

    A caption equal to its reference is a single chunk, but not fragmented: it adds no chunk to a
    set either.
    """
    words, reference_words = counts[:, :2].T
    chunks, matched, reference_matched = counts[:, 20:].T
    whole = (chunks == 1) & (matched == words) & (reference_matched == reference_words)
    counts = counts.copy()
    counts[whole, 20] = 0
    return counts


def meteor(totals: Array) -> dict[str, Array]:
    """Summed `meteor_statistics` [S, 23] -> METEOR [S]."""
    words, reference_words, function, reference_function = totals[:, :4].T
    # Axes: set, match type, content or function word, caption or reference.
    matches = totals[:, 4:20].reshape(-1, 4, 2, 2)
    chunks, matched, reference_matched = totals[:, 20:].T
    weighed = np.einsum("skcr,k,c->sr", matches, _MATCH_WEIGHTS, np.array([_DELTA, 1 - _DELTA])).T
    precision = _ratio(weighed[0], _DELTA * (words - function) + (1 - _DELTA) * function)
    recall = _ratio(
        weighed[1],
        _DELTA * (reference_words - reference_function) + (1 - _DELTA) * reference_function,
    )
    mean = _ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = _ratio(chunks, (matched + reference_matched) / 2)
    return {"METEOR": mean * (1 - _GAMMA * fragmentation**_BETA)}


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def mean_of(name: str) -> Callable[[Array], dict[str, Array]]:
    """The corpus score of a metric that is a mean over images, from summed `mean_statistics`."""
    return lambda totals: {name: totals[:, 0] / totals[:, 1]}


def mean_statistics(scores: Sequence[float]) -> Array:
    """[I, 2]: the score of each image, and 1."""
    return np.column_stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))])


CORPUS_SCORES: dict[str, Callable[[Array], dict[str, Array]]] = {
    "BLEU": bleu,
    "METEOR": meteor,
    **{name: mean_of(name) for name in ("ROUGE-L", "CIDEr", "SPICE")},
}
