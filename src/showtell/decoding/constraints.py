"""Rules for captions, the same for every search: masks over the scores of the next word.

Dimension key: N rows, T words so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from showtell.text.vocabulary import BEGIN, END, PAD, SPECIALS, UNKNOWN, Vocabulary

# The options of a search that are rules for its captions.
RULES = ("min_length", "max_length", "allow_unknown", "no_repeat", "bad_endings", "repeatable")


class WordIds(NamedTuple):
    """The vocabulary ids of the words in a search's rules."""

    endings: tuple[int, ...] = ()
    repeatable: tuple[int, ...] | None = None


class Constrained(Protocol):
    """A search whose options are rules for its captions."""

    @property
    def min_length(self) -> int:
        """Shortest caption in words, at least 0."""
        ...

    @property
    def max_length(self) -> int:
        """Longest caption in words, at least 1."""
        ...

    @property
    def allow_unknown(self) -> bool:
        """Whether UNKNOWN may be written."""
        ...

    @property
    def no_repeat(self) -> int:
        """No n-gram of this many words is written twice; 0 allows all."""
        ...

    @property
    def bad_endings(self) -> Sequence[str]:
        """Words that are never the last one."""
        ...

    @property
    def repeatable(self) -> Sequence[str] | None:
        """Words that may be written more than once; None: all."""
        ...

    @property
    def word_ids(self) -> WordIds | None:
        """The ids of the words in these rules; None until a vocabulary is known."""
        ...


@dataclass(frozen=True, slots=True)
class Constraints:
    """Rules that forbid next words given the words so far; PAD and BEGIN are never written.

    Attributes:
        min_length: shortest caption in words, at least 0.
        max_length: longest caption in words, at least 1.
        allow_unknown: whether UNKNOWN may be written.
        no_repeat: no n-gram of this many words is written twice; 0 allows all.
        endings: ids of words that are never the last one.
        repeatable: ids of the words that may be written more than once; None: all.
    """

    min_length: int
    max_length: int
    allow_unknown: bool
    no_repeat: int
    endings: tuple[int, ...]
    repeatable: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            raise ValueError("0 <= min_length <= max_length and 1 <= max_length")
        if self.no_repeat < 0:
            raise ValueError(f"no_repeat is a number of words or 0, not {self.no_repeat}")

    @classmethod
    def of(cls, search: Constrained) -> Self:
        """The rules of ``search``, without those that name words as long as it lacks their ids.

        Raises:
            ValueError: the rules are invalid.
        """
        ids = search.word_ids or WordIds()
        return cls(
            min_length=search.min_length,
            max_length=search.max_length,
            allow_unknown=search.allow_unknown,
            no_repeat=search.no_repeat,
            endings=ids.endings,
            repeatable=ids.repeatable,
        )

    def forbid(self, scores: Tensor, tokens: Tensor) -> None:
        """Set ``scores`` (N, V) to minus infinity for what may not follow ``tokens`` (N, T).

        If nothing else may follow, END may, so that every search produces a caption. To end a
        caption of ``max_length`` words is left to the search.
        """
        ends_N = scores[:, END].clone() if self._may_run_dry(scores.shape[1]) else None
        for token_id in self._forbidden_at(tokens.shape[1]):
            # One by one: a list as an index would be copied to the device at every word.
            scores[:, token_id].fill_(-torch.inf)
        if self.no_repeat:
            self._forbid_repeats(scores, tokens)
        if tokens.shape[1] and self.repeatable is not None:
            again_NT = torch.isin(tokens, _on(tokens.device, self.repeatable))
            # PAD, which is forbidden anyway, takes the place of words that may be repeated.
            scores.scatter_(1, tokens.masked_fill(again_NT, PAD), -torch.inf)
        if tokens.shape[1] and self.endings:
            bad_N = torch.isin(tokens[:, -1], _on(tokens.device, self.endings))
            scores[:, END].masked_fill_(bad_N, -torch.inf)
        if ends_N is not None:
            dry_N = scores.amax(dim=1) == -torch.inf
            scores[:, END] = ends_N.where(dry_N, scores[:, END])

    def _forbidden_at(self, words: int) -> list[int]:
        """The tokens that may not follow ``words`` words, whatever these are."""
        forbidden = [PAD, BEGIN] if self.allow_unknown else [PAD, BEGIN, UNKNOWN]
        if words < self.min_length:
            forbidden.append(END)
        if words == self.max_length - 1:  # only END can follow the word that comes now
            forbidden += self.endings
        return forbidden

    def _forbid_repeats(self, scores: Tensor, tokens: Tensor) -> None:
        """Forbid each word that has already followed the last ``no_repeat`` - 1 words."""
        length = self.no_repeat
        if tokens.shape[1] < length:
            return
        runs_NRn = tokens.unfold(1, length, 1)  # all n-grams so far
        last_N1n = tokens[:, tokens.shape[1] - length + 1 :].unsqueeze(1)
        again_NR = (runs_NRn[:, :, :-1] == last_N1n).all(dim=2)
        # PAD, which is forbidden anyway, takes the place of words that are not.
        scores.scatter_(1, runs_NRn[:, :, -1].where(again_NR, PAD), -torch.inf)

    def _may_run_dry(self, vocabulary_size: int) -> bool:
        """Whether the rules could forbid every word, which only a small vocabulary allows."""
        repeats = self.max_length if self.no_repeat or self.repeatable is not None else 0
        return vocabulary_size - len(SPECIALS) <= repeats + len(self.endings)


@lru_cache(maxsize=16)
def _on(device: torch.device, ids: tuple[int, ...]) -> Tensor:
    """``ids`` on ``device``; cached, since copying them at every word would make a GPU wait."""
    with torch.inference_mode(False):
        return torch.tensor(ids, dtype=torch.long, device=device)


def word_ids_of(search: Constrained, vocabulary: Vocabulary) -> WordIds:
    """The ids of the words in the rules of ``search``, except words unknown to the vocabulary."""
    endings, repeatable = search.bad_endings, search.repeatable
    return WordIds(
        _known(endings, vocabulary), None if repeatable is None else _known(repeatable, vocabulary)
    )


def _known(words: Sequence[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(i for i in vocabulary.encode(words) if i != UNKNOWN)


def constraints_for_decoding(search: Constrained) -> Constraints:
    """The rules of a search that is about to begin.

    Raises:
        ValueError: they name words, but the search does not know their ids.
    """
    if search.word_ids is None and (search.bad_endings or search.repeatable is not None):
        raise ValueError(
            "bad_endings and repeatable are words: tell the search their ids by `with_vocabulary`"
        )
    return Constraints.of(search)
