"""Language statistics of captions: lengths, words, repetitions, copies; generated and human.

All counts are over words as they are scored: tokenized, lower-case, without punctuation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from showtell.text.tokenizer import tokenize

Sentence = tuple[str, ...]

_LISTED = 5
_NO_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class WordStatistics:
    """Statistics of a set of captions; shares are fractions in 0..1, None if not computed.

    Attributes:
        captions: number of captions, at least one.
        lengths: length in words -> number of captions.
        different_words: number of distinct words.
        different_captions: number of distinct captions.
        most_frequent: up to five captions used more than once, with counts, most frequent first.
        vocabulary_used: share of the vocabulary's words that are used.
        unknown_words: share of the words (tokens) that are outside the vocabulary.
        repeating: share of captions that repeat themselves, see `repeats_itself`.
        agreeing: share of captions equal to a reference of their image (of references: to another).
        copied: share of captions that equal a training caption word for word.
        unfinished: share of captions cut off at the maximum length.
    """

    captions: int
    lengths: Counter[int]
    different_words: int
    different_captions: int
    most_frequent: tuple[tuple[str, int], ...]
    repeating: float
    vocabulary_used: float | None = None
    unknown_words: float | None = None
    agreeing: float | None = None
    copied: float | None = None
    unfinished: float | None = None

    @property
    def mean_words(self) -> float:
        """Mean number of words per caption."""
        return sum(length * n for length, n in self.lengths.items()) / self.captions

    @property
    def most_used(self) -> float:
        """Share of the most frequent caption."""
        return (self.most_frequent[0][1] if self.most_frequent else 1) / self.captions

    @property
    def length_shares(self) -> dict[int, float]:
        """Length in words -> percentage of the captions."""
        return {length: 100 * n / self.captions for length, n in self.lengths.items()}

    def figures(self) -> dict[str, float]:
        """The statistics that were computed, under their names in files and tables."""
        known = {
            "mean length in words": self.mean_words,
            "longest in words": max(self.lengths),
            "different words": self.different_words,
            "share of the vocabulary": self.vocabulary_used,
            "share of unknown words": self.unknown_words,
            "different captions": self.different_captions,
            "share different": self.different_captions / self.captions,
            "share most frequent": self.most_used,
            "share with repeats": self.repeating,
            "share equal to a reference": self.agreeing,
            "share copied from training": self.copied,
            "share unfinished": self.unfinished,
        }
        return {name: value for name, value in known.items() if value is not None}


def figure_text(name: str, value: float) -> str:
    """Format a figure: shares in per cent, the mean with one decimal, counts as integers."""
    if name.startswith("share"):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if name.startswith("mean") else f"{value:,.0f}"


def sentences_of(captions: Iterable[str]) -> list[Sentence]:
    """Captions as tuples of words, so that captions of the same words compare equal."""
    return [tuple(tokenize(caption)) for caption in captions]


def caption_words(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]] | None = None,
    *,
    training: Iterable[str] | None = None,
    vocabulary: Collection[str] | None = None,
    unfinished: Collection[str] | None = None,
) -> WordStatistics:
    """Statistics of generated captions, at least one.

    Args:
        captions: image id -> its caption.
        references: image id -> its references.
        training: the raw training captions.
        vocabulary: the words of the model.
        unfinished: ids of images whose captions were cut off.
    """
    agreeing = None
    if references is not None:
        agreeing = _share(_is_among(c, references.get(i, ())) for i, c in captions.items())
    return _statistics(
        sentences_of(captions.values()),
        agreeing=agreeing,
        copied=None if training is None else copied_share(captions.values(), training),
        vocabulary=vocabulary,
        unfinished=None if unfinished is None else len(unfinished) / len(captions),
    )


def reference_words(
    references: Mapping[str, Sequence[str]],
    *,
    training: Iterable[str] | None = None,
    vocabulary: Collection[str] | None = None,
) -> WordStatistics:
    """Statistics of human captions, of at least one image; arguments as in `caption_words`."""
    by_image = [sentences_of(each) for each in references.values()]
    raw = [caption for each in references.values() for caption in each]
    return _statistics(
        [sentence for each in by_image for sentence in each],
        agreeing=_share(each.count(sentence) > 1 for each in by_image for sentence in each),
        copied=None if training is None else copied_share(raw, training),
        vocabulary=vocabulary,
        unfinished=None,
    )


def copied_share(captions: Collection[str], training: Iterable[str]) -> float:
    """The share of captions that equal a training caption word for word."""
    # Comparing letters first saves tokenizing hundreds of thousands of training captions.
    wanted = set(map(letters_of, captions))
    known = set(sentences_of(c for c in training if letters_of(c) in wanted))
    return _share(sentence in known for sentence in sentences_of(captions))


@lru_cache(maxsize=2**14)  # every validation asks for the same references
def letters_of(caption: str) -> str:
    """The lower-case letters and digits: equal, with rare exceptions, if all words are equal."""
    return _NO_LETTERS.sub("", caption).lower()


def _is_among(caption: str, others: Sequence[str]) -> bool:
    """Whether one of ``others`` equals the caption word for word."""
    letters = letters_of(caption)
    alike = [other for other in others if letters_of(other) == letters]
    return bool(alike) and tuple(tokenize(caption)) in sentences_of(alike)


def repeats_itself(sentence: Sentence) -> bool:
    """Whether a sentence repeats words in a way people hardly ever do.

    That is one or more words twice in a row (``a dog a dog``), or two or more words again after a
    single other one (``a white dog and a white dog``).
    """
    return _recurs(sentence, gap=0, least=1) or _recurs(sentence, gap=1, least=2)


def _recurs(sentence: Sentence, *, gap: int, least: int) -> bool:
    """Whether ``least`` or more words recur ``gap`` words after they end."""
    longest = (len(sentence) - gap) // 2
    return any(
        sentence[start : start + n] == sentence[start + n + gap : start + 2 * n + gap]
        for n in range(least, longest + 1)
        for start in range(len(sentence) - 2 * n - gap + 1)
    )


def _statistics(
    sentences: Sequence[Sentence],
    *,
    agreeing: float | None,
    copied: float | None,
    vocabulary: Collection[str] | None,
    unfinished: float | None,
) -> WordStatistics:
    captions = Counter(sentences)
    words = Counter(word for sentence in sentences for word in sentence)
    return WordStatistics(
        captions=len(sentences),
        lengths=Counter(map(len, sentences)),
        different_words=len(words),
        different_captions=len(captions),
        most_frequent=tuple(
            (" ".join(sentence), n) for sentence, n in captions.most_common(_LISTED) if n > 1
        ),
        repeating=_share(map(repeats_itself, sentences)),
        **_word_shares(words, vocabulary),
        agreeing=agreeing,
        copied=copied,
        unfinished=unfinished,
    )


def _word_shares(words: Counter[str], vocabulary: Collection[str] | None) -> dict[str, float]:
    if vocabulary is None:
        return {}
    known = set(vocabulary)
    total = words.total()
    used = words.keys() & known
    return {
        "vocabulary_used": len(used) / max(1, len(known)),
        "unknown_words": 1 - sum(words[w] for w in used) / total if total else 0.0,
    }


def _share(answers: Iterable[bool]) -> float:
    listed = list(answers)
    return sum(listed) / len(listed)
