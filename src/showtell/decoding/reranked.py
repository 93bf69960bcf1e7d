"""Beam search that is guided, and whose ended hypotheses are reranked, by expected CIDEr.

Dimension key: B images, R regions, D feature size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

from torch import Tensor

from showtell.decoding.beam import BeamSearch, Guide, Hypothesis, length_norm
from showtell.decoding.constraints import RULES, WordIds, word_ids_of
from showtell.decoding.ensemble import Ensemble
from showtell.decoding.expected import Captions, ExpectedNgrams
from showtell.decoding.guidance import ExpectedCider
from showtell.decoding.rescoring import log_probs_of
from showtell.models.decoder import StepDecoder
from showtell.text.vocabulary import END, Vocabulary


@dataclass(frozen=True, slots=True)
class RerankedBeamSearch:
    """Beam search that picks the hypothesis with the best sum of its score and expected CIDEr.

    The two complement each other: a decoder is good at the next word and less good at what a whole
    caption says of the image; the prediction of `ExpectedNgrams` knows no order beyond four words.

    Attributes:
        candidates: ended hypotheses that are compared, at least 1. The search goes on until as many
            have ended, whatever its ``beam_size``.
        weight: weight of the expected CIDEr (0 to 10) beside the score of the beam search.
        guidance: its weight while the search goes on: the hypotheses that are followed are those
            with the best sums of score and expected CIDEr so far (`ExpectedCider`). With 0 it only
            compares the ended ones.
        word_reward: added for each word (He et al. 2016, "Improved Neural Machine Translation with
            SMT Features"); decoders trained for CIDEr-D write shorter captions than people do.
        pool: whether each member of an ensemble searches for its own candidates, and all are
            compared, by the mean of the members' scores, instead of one search with the mean of
            the members. Nothing changes for one decoder alone.
        least_images: an n-gram in the references of fewer training images is not predicted.
        rank: rank of the prediction; the size of its file grows with it.
        expected: the fitted prediction, set by `fitted` or `with_expected`.

    The others are those of `BeamSearch`.
    """

    beam_size: int
    min_length: int
    max_length: int
    length_penalty: float
    allow_unknown: bool
    no_repeat: int
    bad_endings: Sequence[str]
    candidates: int
    weight: float
    least_images: int
    rank: int
    # For the `run.json` of older runs.
    repeatable: Sequence[str] | None = None
    word_reward: float = 0.0
    pool: bool = False
    guidance: float = 0.0
    word_ids: WordIds | None = None
    expected: ExpectedNgrams | None = None

    def __post_init__(self) -> None:
        self._beams()
        if min(self.candidates, self.least_images, self.rank) < 1:
            raise ValueError("candidates, least_images and rank are at least 1")
        for name in ("weight", "guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number from 0, not {getattr(self, name)}")
        if not math.isfinite(self.word_reward):
            raise ValueError(f"word_reward is a finite number, not {self.word_reward}")

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """A copy of this search that knows the ids of the words in its rules."""
        return replace(self, word_ids=word_ids_of(self, vocabulary))

    def fitted(self, captions: Sequence[Captions], features: Iterable[Tensor]) -> Self:
        """A copy of this search fitted to training images: see `ExpectedNgrams.fit`.

        ``captions`` are token ids without END; ``features`` are iterated over twice.
        """
        ended = [[(*tokens, END) for tokens in references] for references in captions]
        options = {"least_images": self.least_images, "rank": self.rank}
        return self.with_expected(ExpectedNgrams.fit(ended, features, **options))

    def with_expected(self, expected: ExpectedNgrams) -> Self:
        """A copy of this search with an already fitted prediction."""
        return replace(self, expected=expected)

    def __call__(self, decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
        """The best caption of each image of ``features`` (B, D) or (B, R, D), in order.

        Its score is the sum that the candidates are compared by; of equals the first found wins.
        """
        if self.expected is None:
            raise ValueError("a search that compares with what is expected must be told of it")
        pooled = features.mean(dim=1) if features.dim() == 3 else features
        guide = ExpectedCider(self.expected, pooled, self.guidance) if self.guidance else None
        found = self._candidates(decoder, features, guide)
        scores = self.expected.scores(pooled, _captions(found))
        return [
            max(map(self._rated, *image), key=lambda hypothesis: hypothesis.score)
            for image in zip(found, scores, strict=True)
        ]

    def _candidates(
        self, decoder: StepDecoder, features: Tensor, guide: Guide | None
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each image that are compared, each with its score."""
        if self.pool and isinstance(decoder, Ensemble) and len(decoder.members) > 1:
            return candidates_of_members(self._beams(), decoder, features, self.candidates, guide)
        return self._beams().several(decoder, features, self.candidates, guide)

    def _rated(self, hypothesis: Hypothesis, expected: float) -> Hypothesis:
        """With the score by which it is compared."""
        reward = self.word_reward * len(hypothesis.token_ids)
        return replace(hypothesis, score=hypothesis.score + self.weight * expected + reward)

    def _beams(self) -> BeamSearch:
        own = ("beam_size", "length_penalty", *RULES, "word_ids")
        return BeamSearch(**{name: getattr(self, name) for name in own})


def candidates_of_members(
    beams: BeamSearch,
    ensemble: Ensemble,
    features: Tensor,
    count: int,
    guide: Guide | None,
) -> list[list[Hypothesis]]:
    """The different captions of each image that the members find, up to ``count`` each.

    ``features`` are those of the ensemble, (B, D) or (B, R, D); ``guide``, if any, guides every
    search. The score of each caption is the mean of what ``beams`` would give it with every member:
    log probability in nats over its length norm. The first member that wrote it decides its place,
    and whether it was cut off.
    """
    found = [
        beams.several(member, own, count, guide)
        for member, own in ensemble.members_with_features(features)
    ]
    pools = [_distinct(chain(*lists)) for lists in zip(*found, strict=True)]
    captions = _captions(pools)
    log_probs = [
        log_probs_of(member, own, captions)
        for member, own in ensemble.members_with_features(features)
    ]
    return [
        [
            replace(each, score=_mean_score(each, by_member, beams.length_penalty))
            for each, *by_member in zip(pool, *of_image, strict=True)
        ]
        for pool, *of_image in zip(pools, *log_probs, strict=True)
    ]


def _distinct(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """The first of those with the same words, in order."""
    first: dict[tuple[int, ...], Hypothesis] = {}
    for each in hypotheses:
        first.setdefault(each.token_ids, each)
    return list(first.values())


def _mean_score(hypothesis: Hypothesis, log_probs: Sequence[float], length_penalty: float) -> float:
    norm = length_norm(len(hypothesis.token_ids), length_penalty)
    return sum(log_probs) / len(log_probs) / norm


def _captions(found: Sequence[Sequence[Hypothesis]]) -> list[Captions]:
    """Their token ids with END."""
    return [[(*each.token_ids, END) for each in hypotheses] for hypotheses in found]
