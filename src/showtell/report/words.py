"""What the captions are like as language: lengths, words, repetition, copies of the training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from showtell.text.tokenizer import tokenize

Sentence = tuple[str, ...]


@dataclass(frozen=True)
class WordStatistics:
    """Counts over some captions as the scores see them: tokenised, without punctuation.

    Attributes:
        captions: how many there are, equal ones counted each time.
        lengths: words of a caption -> captions of that length.
        distinct_words: different words used in all.
        distinct_share: different captions as a share of all.
        most_frequent: captions used more than once with their counts, the most frequent first.
    """

    captions: int
    lengths: Counter[int]
    distinct_words: int
    distinct_share: float
    most_frequent: tuple[tuple[str, int], ...]

    @property
    def mean_words(self) -> float:
        """Words of a caption on average."""
        return sum(length * n for length, n in self.lengths.items()) / self.captions

    @property
    def length_shares(self) -> dict[int, float]:
        """Words of a caption -> per cent of the captions."""
        return {length: 100 * n / self.captions for length, n in self.lengths.items()}


def sentences_of(captions: Iterable[str]) -> list[Sentence]:
    """Captions as tuples of words, which compare equal when they say the same."""
    return [tuple(tokenize(caption)) for caption in captions]


def word_statistics(sentences: Sequence[Sentence], *, listed: int = 5) -> WordStatistics:
    """Count lengths and words of at least one sentence; list the ``listed`` most frequent."""
    counts = Counter(sentences)
    repeated = [(" ".join(s), n) for s, n in counts.most_common(listed) if n > 1]
    return WordStatistics(
        captions=len(sentences),
        lengths=Counter(map(len, sentences)),
        distinct_words=len({word for sentence in counts for word in sentence}),
        distinct_share=len(counts) / len(sentences),
        most_frequent=tuple(repeated),
    )


def copied_share(sentences: Sequence[Sentence], training: Iterable[Sentence]) -> float:
    """The share of the sentences that are, word for word, a caption of the training."""
    known = set(training)
    return sum(sentence in known for sentence in sentences) / len(sentences)
