"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) with precomputed references.

Equal to pycocoevalcap's scorer to 1e-9, but tf-idf vectors of references are computed only once, so
that a caption takes microseconds, as validation in every epoch and self-critical training need.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Ngram = tuple[str, ...]
_Token = TypeVar("_Token")

LONGEST = 4  # n-grams of 1 to 4 words
_SIGMA = 6.0  # of the Gaussian penalty on the difference in length, in words
SCALE = 10.0


@dataclass(frozen=True, slots=True)
class DocumentFrequencies:
    """n-gram -> number of images, of ``images`` in all, with a reference that contains it.

    N-grams of a single image, nine of ten, have no entry: their idf equals that of an n-gram
    without any image.
    """

    counts: Mapping[Ngram, int]
    images: int

    @classmethod
    def of(cls, references: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        """Count over the tokenized references of each image."""
        counts: Counter[Ngram] = Counter()
        images = 0
        for sentences in references:
            images += 1
            counts.update({gram for tokens in sentences for gram in ngrams(tokens)})
        return cls({gram: count for gram, count in counts.items() if count > 1}, images)

    def count(self, gram: Ngram) -> int:
        """The number of images with ``gram``, at least 1."""
        return self.counts.get(gram, 1)

    def idf(self, documents: int) -> float:
        """Inverse document frequency log(images / documents), with ``documents`` at least 1."""
        return math.log(max(1, self.images)) - math.log(max(1, documents))


@dataclass(frozen=True, slots=True)
class _References:
    """The tf-idf vectors of an image's references, as an inverted index."""

    weights: Mapping[Ngram, tuple[tuple[int, float], ...]]  # n-gram -> (reference, tf-idf), ...
    norms: tuple[tuple[float, ...], ...]  # for each reference the norm for each n
    lengths: tuple[int, ...]


class CiderD:
    """CIDEr-D of captions for images with given references, 0 to 10, higher is better.

    Args:
        references: image id -> its tokenized references.
        frequencies: document frequencies; by default those of ``references``, as in the COCO
            evaluation. Self-critical training passes those of the training set.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[Sequence[str]]],
        *,
        frequencies: DocumentFrequencies | None = None,
    ) -> None:
        self.frequencies = frequencies or DocumentFrequencies.of(references.values())
        most = max(self.frequencies.counts.values(), default=1)
        # A table of idf by count, because each caption needs dozens.
        self._idf = [self.frequencies.idf(count) for count in range(most + 1)]
        self._references = {i: self._weigh(sentences) for i, sentences in references.items()}

    def score(self, tokens: Sequence[str], image_id: str) -> float:
        """CIDEr-D of one tokenized caption against the references of ``image_id``."""
        references = self._references[image_id]
        vector = self._vector(tokens)
        norms = _norms(vector)
        dots = [[0.0] * LONGEST for _ in references.lengths]
        for gram, weight in vector.items():
            for reference, other in references.weights.get(gram, ()):
                # Clipping is the D of CIDEr-D: repeating a word gains nothing.
                dots[reference][len(gram) - 1] += min(weight, other) * other
        total = sum(
            _similarity(dot, norms, others, _length(tokens) - length)
            for dot, others, length in zip(dots, references.norms, references.lengths, strict=True)
        )
        return SCALE * total / (LONGEST * len(references.lengths))

    def _vector(self, tokens: Sequence[str]) -> dict[Ngram, float]:
        """n-gram -> tf-idf."""
        documents, idf = self.frequencies.counts, self._idf
        return {gram: count * idf[documents.get(gram, 1)] for gram, count in ngrams(tokens).items()}

    def _weigh(self, sentences: Sequence[Sequence[str]]) -> _References:
        weights: dict[Ngram, list[tuple[int, float]]] = {}
        norms = []
        for reference, tokens in enumerate(sentences):
            vector = self._vector(tokens)
            norms.append(_norms(vector))
            for gram, weight in vector.items():
                weights.setdefault(gram, []).append((reference, weight))
        return _References(
            {gram: tuple(pairs) for gram, pairs in weights.items()},
            tuple(norms),
            tuple(_length(tokens) for tokens in sentences),
        )


def ngrams(tokens: Sequence[_Token]) -> Counter[tuple[_Token, ...]]:
    """Counts of all n-grams of 1 to 4 tokens, which may be of any hashable type."""
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(tokens) - n + 1)
    )


def _length(tokens: Sequence[str]) -> int:
    # The published code takes the number of bigrams as a caption's length.
    return max(0, len(tokens) - 1)


def _norms(vector: Mapping[Ngram, float]) -> tuple[float, ...]:
    squares = [0.0] * LONGEST
    for gram, weight in vector.items():
        squares[len(gram) - 1] += weight * weight
    return tuple(math.sqrt(square) for square in squares)


def _similarity(
    dots: Sequence[float], norms: Sequence[float], others: Sequence[float], difference: int
) -> float:
    """The sum over n of the cosine similarities, times the length penalty."""
    cosines = sum(
        dot / (norm * other) if norm and other else dot
        for dot, norm, other in zip(dots, norms, others, strict=True)
    )
    return cosines * math.exp(-(difference**2) / (2 * _SIGMA**2))
