"""Diverse beam search: groups of beams that avoid each other's words, all images at once.

Dimension key: B images, L live images, G groups, k beams of a group, K = G * k beams of an image,
V vocabulary, C continuations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from showtell.decoding.beam import (
    Beams,
    Continuations,
    Ended,
    Hypothesis,
    batching_for,
    best_continuations,
    check_length_penalty,
    continuing,
    end_all,
    ended_among,
    length_norm,
)
from showtell.decoding.constraints import (
    Constraints,
    WordIds,
    constraints_for_decoding,
    word_ids_of,
)
from showtell.models.decoder import StepDecoder
from showtell.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class DiverseBeamSearch:
    """A beam search in each group; at every step, later groups avoid the words of earlier ones.

    Vijayakumar et al. 2018, "Diverse Beam Search for Improved Description of Complex Scenes",
    with the Hamming diversity: a group chooses its continuations by log probability minus
    ``diversity`` for each beam of an earlier group that goes on with the same word. Ended
    hypotheses are compared without this penalty, and END is never penalized.

    Attributes:
        groups: at least 1; the first is plain beam search.
        beam_size: beams of each group, at least 1.
        diversity: penalty in nats, at least 0.
        min_length: shortest caption in words, at least 0.
        max_length: longest caption in words; at this length END is the only continuation.
        length_penalty: see ``BeamSearch``.
        allow_unknown: whether UNKNOWN may be written. PAD and BEGIN never are.
        no_repeat: no n-gram of this many words is written twice; 0 allows all.
        bad_endings: words that are never the last one.
        repeatable: words that may be written more than once; None: all.
        word_ids: ids of the words in ``bad_endings`` and ``repeatable``; see `with_vocabulary`.
    """

    groups: int
    beam_size: int
    diversity: float
    min_length: int
    max_length: int
    length_penalty: float
    allow_unknown: bool
    no_repeat: int
    bad_endings: Sequence[str]
    repeatable: Sequence[str] | None = None  # for the `run.json` of older runs
    word_ids: WordIds | None = None

    def __post_init__(self) -> None:
        if self.groups < 1 or self.beam_size < 1:
            raise ValueError("groups and beam_size are at least 1")
        if not 0 <= self.diversity < math.inf:
            raise ValueError(f"diversity is at least 0 and finite, not {self.diversity}")
        check_length_penalty(self.length_penalty)
        Constraints.of(self)  # raises for invalid rules

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """A copy of this search that knows the ids of the words in its rules."""
        return replace(self, word_ids=word_ids_of(self, vocabulary))

    def __call__(self, decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
        """The best caption over all groups of each image of ``features`` (B, D) or (B, R, D)."""
        found = self.by_group(decoder, features)
        return [max(each, key=lambda hypothesis: hypothesis.score) for each in found]

    @torch.inference_mode()
    def by_group(self, decoder: StepDecoder, features: Tensor) -> list[list[Hypothesis]]:
        """For each image, the best caption of each group."""
        rules = constraints_for_decoding(self)
        batching = batching_for(features.device)
        parts = torch.split(features, max(1, batching.rows // (self.groups * self.beam_size)))
        return [
            each for part in parts for each in self._search(decoder, part, rules, batching.words)
        ]

    def _search(
        self, decoder: StepDecoder, features: Tensor, rules: Constraints, words_between: int
    ) -> list[list[Hypothesis]]:
        images = len(features)
        beams = Beams(decoder.start(features), images, self.groups * self.beam_size)
        ended = [
            Ended(images, self.beam_size, self.max_length, features.device)
            for _ in range(self.groups)
        ]
        for words in range(self.max_length + 1):
            scores_LKV = beams.step(decoder)
            rules.forbid(scores_LKV.flatten(0, 1), beams.tokens.flatten(0, 1))
            cut_LK = end_all(scores_LKV) if words == self.max_length else None
            norm = length_norm(words, self.length_penalty)
            going = []
            for group, (ends, goes_on) in zip(
                ended, self._continue(beams.totals(scores_LKV)), strict=True
            ):
                group.add(beams, ends, words, norm, cut_LK)
                going.append(goes_on)
            beams.advance(_beside(going))
            decided = self._stop(beams, ended)
            if (words + 1) % words_between == 0:
                beams.drop(decided)
                if len(beams.images) == 0:
                    break
        return [list(each) for each in zip(*(group.best() for group in ended), strict=True)]

    def _continue(self, totals_LKV: Tensor) -> Iterator[tuple[Continuations, Continuations]]:
        """For each group in turn, the continuations that end and those that go on."""
        size = self.beam_size
        taken_LV = torch.zeros_like(totals_LKV[:, 0])
        for group in range(self.groups):
            # Until the first word one beam stands for all.
            first = 0 if totals_LKV.shape[1] == 1 else group * size
            own_LkV = totals_LKV[:, first : first + size]
            rated_LC = (own_LkV - self.diversity * taken_LV.unsqueeze(1)).flatten(1)
            best = best_continuations(rated_LC, 2 * size, totals_LKV.shape[2])
            goes_on = continuing(best, size)
            yield (
                _unrated(ended_among(best, size), own_LkV, first),
                _unrated(goes_on, own_LkV, first),
            )
            live = (goes_on.log_probs > -torch.inf).to(taken_LV.dtype)
            taken_LV.scatter_add_(1, goes_on.token_ids, live)

    def _stop(self, beams: Beams, ended: Sequence[Ended]) -> Tensor:
        """Which live images (L,) all groups have decided; marks decided groups' beams as dead."""
        norm = length_norm(self.max_length, self.length_penalty)
        decided = []
        log_probs_LGk = beams.log_probs.view(-1, self.groups, self.beam_size)
        for log_probs_Lk, group in zip(log_probs_LGk.unbind(1), ended, strict=True):
            decided_L = group.decided(beams.images, log_probs_Lk.amax(dim=1) / norm)
            log_probs_Lk.masked_fill_(decided_L.unsqueeze(1), -torch.inf)
            decided.append(decided_L)
        return torch.stack(decided).all(dim=0)


def _unrated(chosen: Continuations, own_LkV: Tensor, first: int) -> Continuations:
    """Restore log probabilities without the penalty, and number parents over all groups."""
    flat = chosen.parents * own_LkV.shape[2] + chosen.token_ids
    log_probs = own_LkV.flatten(1).gather(1, flat)
    log_probs = log_probs.masked_fill(chosen.log_probs == -torch.inf, -torch.inf)
    return Continuations(log_probs, first + chosen.parents, chosen.token_ids)


def _beside(groups: Sequence[Continuations]) -> Continuations:
    return Continuations(*(torch.cat(parts, dim=1) for parts in zip(*groups, strict=True)))
