"""The vocabulary: the words a captioner knows and four special tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from showtell.errors import UserError
from showtell.files import write_atomically

# Four distinct ids: a model that pads with its end token learns to stop early, and one that begins
# with its end token cannot tell start from stop.
PAD, BEGIN, END, UNKNOWN = range(4)
SPECIALS = ("<pad>", "<begin>", "<end>", "<unknown>")


class Vocabulary:
    """A fixed list of tokens; a token's id is its position, and the four special ones come first.

    To be built from training captions only, so that evaluation splits do not leak into it.
    """

    def __init__(self, words: Sequence[str], *, min_count: int, counts: Sequence[int]) -> None:
        self.words = tuple(words)
        self.min_count = min_count
        self.counts = tuple(counts)
        self.tokens = (*SPECIALS, *self.words)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            raise ValueError("a vocabulary holds each word once and none of the special tokens")

    @classmethod
    def from_captions(cls, captions: Iterable[Sequence[str]], *, min_count: int) -> Vocabulary:
        """The words that occur at least ``min_count`` times in tokenized ``captions``.

        Ordered by decreasing count, then alphabetically, so that ids do not depend on the order of
        the captions.

        Raises:
            UserError: no word is frequent enough.
        """
        counts = Counter(token for caption in captions for token in caption)
        for special in SPECIALS:  # written into captions by other programs
            counts.pop(special, None)
        frequent = sorted(
            (word for word, count in counts.items() if count >= min_count),
            key=lambda word: (-counts[word], word),
        )
        if not frequent:
            raise UserError(
                f"No word occurs {min_count} times in the training captions; "
                "lower text.min_count or add captions"
            )
        return cls(frequent, min_count=min_count, counts=[counts[word] for word in frequent])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """Ids of ``tokens``, without BEGIN and END; a word not in the vocabulary is UNKNOWN.

        So is the text of a special token, such as "<end>".
        """
        ids = (self._ids.get(token, UNKNOWN) for token in tokens)
        return [i if i >= len(SPECIALS) else UNKNOWN for i in ids]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words up to the first END, without BEGIN and PAD; UNKNOWN stays as ``<unknown>``."""
        words = []
        for i in ids:
            if i == END:
                break
            if i not in (PAD, BEGIN):
                words.append(self.tokens[i])
        return words

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        content = {
            "min_count": self.min_count,
            "specials": list(SPECIALS),
            "words": list(self.words),
            "counts": list(self.counts),
        }
        text = json.dumps(content, ensure_ascii=False, indent=0) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what ``save`` wrote.

        Raises:
            UserError: the file is missing, is not a vocabulary or has other special tokens.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["specials"] != list(SPECIALS):
                raise UserError(f"{path} was written with other special tokens; train the run anew")
            if not all(isinstance(word, str) for word in content["words"]):
                raise TypeError("a word is no text")
            return cls(content["words"], min_count=content["min_count"], counts=content["counts"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a vocabulary ({error}); restore it from the run's origin"
            ) from error
