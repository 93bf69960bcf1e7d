"""What captions are like as language: lengths, words, repetition, copies; theirs and people's.

All counts are over the words that the scores see: tokenized, in lower case, without punctuation.
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
    """Counts over some captions; a share is a fraction in 0..1, None where it was not asked for.

    Attributes:
        captions: how many there are, equal ones counted each time; at least one.
        lengths: words of a caption -> captions of that length.
        different_words: how many words are used in all.
        different_captions: how many captions there are when equal ones count once.
        most_frequent: captions used more than once with their counts, the most frequent first.
        vocabulary_used: share of the vocabulary's words that are used.
        unknown_words: share of the words that are outside the vocabulary.
        repeating: share of captions that repeat themselves, see `repeats_itself`.
        agreeing: share of captions equal to a reference of their image; of references, to another.
        copied: share of captions that are, word for word, a caption of the training.
        unfinished: share of captions cut off at the longest length.
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
        """Words of a caption on average."""
        return sum(length * n for length, n in self.lengths.items()) / self.captions

    @property
    def most_used(self) -> float:
        """Share of the captions that are the most frequent one."""
        return (self.most_frequent[0][1] if self.most_frequent else 1) / self.captions

    @property
    def length_shares(self) -> dict[int, float]:
        """Words of a caption -> per cent of the captions."""
        return {length: 100 * n / self.captions for length, n in self.lengths.items()}

    def figures(self) -> dict[str, float]:
        """Those that are known, under the names that files and tables give them."""
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
    """A figure for people: shares in per cent, the mean with a decimal, counts whole."""
    if name.startswith("share"):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if name.startswith("mean") else f"{value:,.0f}"


def sentences_of(captions: Iterable[str]) -> list[Sentence]:
    """Captions as tuples of words, which compare equal when they say the same."""
    return [tuple(tokenize(caption)) for caption in captions]


def caption_words(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]] | None = None,
    *,
    training: Iterable[str] | None = None,
    vocabulary: Collection[str] | None = None,
    unfinished: Collection[str] | None = None,
) -> WordStatistics:
    """What the generated captions, at least one, are like.

    Args:
        captions: image id -> its caption.
        references: image id -> its references.
        training: the captions of the training, raw.
        vocabulary: the words the model knows.
        unfinished: ids of the images whose caption was cut off.
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
    """What the captions that people wrote are like, of at least one image."""
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
    """The share of the captions that are, word for word, a caption of the training."""
    # Hundreds of thousands of training captions need not be tokenized to find the few that match.
    wanted = set(map(letters_of, captions))
    known = set(sentences_of(c for c in training if letters_of(c) in wanted))
    return _share(sentence in known for sentence in sentences_of(captions))


@lru_cache(maxsize=2**14)  # a validation asks for the same references every time
def letters_of(caption: str) -> str:
    """The letters and digits in lower case: equal, but for oddities, where all words are equal."""
    return _NO_LETTERS.sub("", caption).lower()


def _is_among(caption: str, others: Sequence[str]) -> bool:
    """Whether one of ``others`` is the caption, word for word."""
    letters = letters_of(caption)
    alike = [other for other in others if letters_of(other) == letters]
    return bool(alike) and tuple(tokenize(caption)) in sentences_of(alike)


def repeats_itself(sentence: Sentence) -> bool:
    """Whether words stand there twice, as people hardly ever write them.

    That is the same one or more words twice in a row (``a dog a dog``), or the same two or more
    words again after a single other one (``a white dog and a white dog``).
    """
    return _recurs(sentence, gap=0, least=1) or _recurs(sentence, gap=1, least=2)


def _recurs(sentence: Sentence, *, gap: int, least: int) -> bool:
    """Whether ``least`` or more words come again ``gap`` words after they ended."""
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
