"""Captions sampled word by word from a decoder's distribution of the next word.

Dimension key: B images, S samples of each, N = B * S captions, M rows still computed, T positions,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, Self

import torch
from torch import Tensor

from showtell.decoding.beam import Hypothesis, batching_for
from showtell.decoding.constraints import (
    Constraints,
    WordIds,
    constraints_for_decoding,
    word_ids_of,
)
from showtell.models.decoder import State, StepDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary

# (scores (M, V), a uniform number in [0, 1) for each row (M,), the words so far (M, t)) -> the next
# word (M,) and its log probability (M,).
Draw = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


# Tokens that are not words of a caption.
NEVER_DRAWN = (PAD, BEGIN, UNKNOWN)
# With less, scores divided by it could overflow; with this, only the most probable word is drawn.
LEAST_TEMPERATURE = 1e-6


class Samples(NamedTuple):
    """Drawn captions, those of one image next to each other: caption n describes image n // S."""

    tokens: Tensor  # (N, T) int64: words, END where it was drawn, then PAD
    lengths: Tensor  # (N,) int64: tokens before PAD, END included
    ended: Tensor  # (N,) bool: whether END was drawn; False where the longest length cut it off
    log_probs: Tensor  # (N,) float32: natural, under the distribution drawn from


@torch.no_grad()
def sample(
    decoder: StepDecoder,
    features: Tensor,
    *,
    samples: int,
    max_length: int,
    generator: torch.Generator,
) -> Samples:
    """Draw captions of each image word by word from softmax(scores).

    PAD, BEGIN and UNKNOWN are never drawn; the distribution of the others is renormalized.

    Args:
        decoder: in the mode, train or eval, that it should run in; no gradient is recorded.
        features: (B, D) or (B, R, D).
        samples: captions of each image, S.
        max_length: longest caption in words; T is one more, for END.
        generator: on any device; it always draws one number for each position of each caption,
            however early that ends.
    """
    shape = (len(features) * samples, max_length + 1)
    uniforms_NT = torch.rand(shape, generator=generator, device=generator.device)
    return _write(decoder, features, uniforms_NT.to(features.device), _draw_any)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Samples captions word by word; the result depends on the seed and the image alone.

    The random numbers are derived from ``seed`` and the content of an image's features, so neither
    the other images nor the number of captions drawn changes any caption.

    Attributes:
        temperature: at least 1e-6; scores are divided by it, so that less than 1 favours probable
            words.
        top_k: draw only from this many most probable words; None for all.
        top_p: draw only from the fewest words that together have this probability (Holtzman et al.
            2020, "The Curious Case of Neural Text Degeneration", section 3.1), after ``top_k``;
            in (0, 1], None for all.
        seed: seed of the random numbers, in 0..2^64 - 1.
        min_length: shortest caption in words, at least 0.
        max_length: longest caption in words; one that would go on is cut off there.
        allow_unknown: whether UNKNOWN may be written. PAD and BEGIN never are.
        no_repeat: no n-gram of this many words is written twice; 0 allows all.
        bad_endings: words that are never the last one.
        repeatable: words that may be written more than once; None: all.
        word_ids: ids of the words in ``bad_endings`` and ``repeatable``; see `with_vocabulary`.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    min_length: int
    max_length: int
    allow_unknown: bool
    no_repeat: int
    bad_endings: Sequence[str]
    repeatable: Sequence[str] | None = None  # for the `run.json` of older runs
    word_ids: WordIds | None = None

    def __post_init__(self) -> None:
        if not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is at least {LEAST_TEMPERATURE:g} and finite, not {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p lies above 0 and at most at 1, not at {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed lies in 0..2^64 - 1, not at {self.seed}")
        Constraints.of(self)  # raises for invalid rules

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """A copy of this sampler that knows the ids of the words in its rules."""
        return replace(self, word_ids=word_ids_of(self, vocabulary))

    def __call__(self, decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
        """The first caption drawn for each image of ``features`` (B, D) or (B, R, D)."""
        return [first for (first,) in self.several(decoder, features, 1)]

    @torch.inference_mode()
    def several(self, decoder: StepDecoder, features: Tensor, count: int) -> list[list[Hypothesis]]:
        """``count`` captions of each image, in the order in which they are drawn.

        A caption's score is the log probability of drawing it.
        """
        rules = constraints_for_decoding(self)
        draw_word = partial(self._draw, rules)
        found = []
        for group in torch.split(features, max(1, batching_for(features.device).rows // count)):
            uniforms_NT = self._uniforms(group, count).to(features.device)
            hypotheses = _hypotheses(_write(decoder, group, uniforms_NT, draw_word))
            found += [hypotheses[i : i + count] for i in range(0, len(hypotheses), count)]
        return found

    def _uniforms(self, features: Tensor, count: int) -> Tensor:
        """A uniform number for each position of each caption: (B * count, max_length + 1)."""
        shape = count, self.max_length + 1
        rows = [torch.empty(0, self.max_length + 1)]
        # As float16, the type that features are stored in.
        for image in features.half().cpu():
            content = image.numpy().tobytes() + self.seed.to_bytes(8, "little")
            key = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
            rows.append(torch.rand(shape, generator=torch.Generator().manual_seed(key)))
        return torch.cat(rows)

    def _draw(
        self, rules: Constraints, scores: Tensor, uniforms: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = scores.clone()  # the decoder may need its own again
        rules.forbid(scores, tokens)
        return draw_filtered(
            scores / self.temperature, uniforms, top_k=self.top_k, top_p=self.top_p
        )


def _hypotheses(samples: Samples) -> list[Hypothesis]:
    rows = (tensor.tolist() for tensor in samples)
    return [
        Hypothesis(tuple(tokens[: length - ended]), log_prob, ended)
        for tokens, length, ended, log_prob in zip(*rows, strict=True)
    ]


def _write(decoder: StepDecoder, features: Tensor, uniforms_NT: Tensor, draw: Draw) -> Samples:
    """Draw N captions, equally many for each of the B images, with the given random numbers."""
    samples = len(uniforms_NT) // max(1, len(features))
    rows = _Rows(decoder.start(features), samples, uniforms_NT)
    words_between = batching_for(features.device).words
    for position in range(uniforms_NT.shape[1]):
        scores_MV, rows.state = decoder.step(rows.last, rows.state)
        rows.write(position, scores_MV.float(), draw)
        if (position + 1) % words_between == 0 and not rows.drop_ended():
            break
    return rows.found()


class _Rows:
    """The captions still being written, next to the others of their images."""

    def __init__(self, start: State, samples: int, uniforms_NT: Tensor) -> None:
        count, device = len(uniforms_NT), uniforms_NT.device
        self.uniforms = uniforms_NT
        self.tokens = torch.full(uniforms_NT.shape, PAD, device=device)
        self.log_probs = torch.zeros(count, device=device)
        self.live = torch.ones(count, dtype=torch.bool, device=device)
        # Which caption each row writes, (groups, rows of a group); a group is an image. If a state
        # shares nothing per image, each row is its own group and can be dropped alone.
        self.captions = torch.arange(count, device=device).view(-1, max(1, samples))
        self.state = start.select(self.captions.flatten() // max(1, samples))
        if not start.images:
            self.captions = self.captions.view(-1, 1)
        self.last = torch.full((count,), BEGIN, device=device)

    def write(self, position: int, scores_MV: Tensor, draw: Draw) -> None:
        """Write the next word of each row; PAD where the caption has ended or is cut off."""
        captions_M = self.captions.flatten()
        words_Mt = self.tokens[captions_M, :position]
        drawn_M, log_probs_M = draw(scores_MV, self.uniforms[captions_M, position], words_Mt)
        live_M = self.live[captions_M]
        if position == self.tokens.shape[1] - 1:  # a word more would be too long
            live_M = live_M & (drawn_M == END)
        self.last = drawn_M.where(live_M, PAD)
        self.tokens[captions_M, position] = self.last
        self.log_probs[captions_M] += log_probs_M.where(live_M, 0.0)
        self.live[captions_M] = live_M & (drawn_M != END)

    def drop_ended(self) -> bool:
        """Drop rows of captions that have ended; returns whether any caption is unended.

        All groups must stay equally wide, as a state requires: some ended rows may remain.
        """
        live_GS = self.live[self.captions]
        counts = live_GS.sum(dim=1)
        width = int(counts.max()) if len(counts) else 0
        groups = counts.nonzero().squeeze(1)
        if len(groups) < len(counts) or width < live_GS.shape[1]:
            # Stable: the rows of a group keep their order, those still written come first.
            kept = (~live_GS[groups]).sort(dim=1, stable=True).indices[:, :width]
            rows = (groups.unsqueeze(1) * live_GS.shape[1] + kept).flatten()
            self.captions = self.captions[groups].gather(1, kept)
            self.state = self.state.keep(groups, rows)
            self.last = self.last[rows]
        return width > 0

    def found(self) -> Samples:
        """The captions written."""
        ended = (self.tokens == END).any(dim=1)
        lengths = (self.tokens != PAD).sum(dim=1)
        return Samples(self.tokens, lengths, ended, self.log_probs)


def draw(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a word (M,) from each row of ``scores`` (M, V), with its log probability (M,).

    PAD, BEGIN and UNKNOWN are never drawn. ``uniforms`` (M,) in [0, 1) determine the words.
    """
    probs_MV = torch.softmax(scores, dim=1)
    for token_id in NEVER_DRAWN:
        probs_MV[:, token_id].fill_(0.0)
    return _invert(probs_MV, uniforms)


def _draw_any(scores: Tensor, uniforms: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return draw(scores, uniforms)


def draw_filtered(
    scores: Tensor, uniforms: Tensor, *, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """As `draw`, but only from the most probable words, and excluding no token by itself."""
    probs_MV = torch.softmax(scores, dim=1)
    if top_k is None and top_p is None:
        return _invert(probs_MV, uniforms)
    count = probs_MV.shape[1] if top_k is None else min(top_k, probs_MV.shape[1])
    probs_MC, words_MC = probs_MV.topk(count, dim=1)
    if top_p is not None:
        probs_MC = probs_MC / probs_MC.sum(dim=1, keepdim=True)
        above_MC = probs_MC.cumsum(dim=1) - probs_MC  # of all more probable words
        probs_MC = probs_MC.masked_fill(above_MC >= top_p, 0.0)
    drawn_M, log_probs_M = _invert(probs_MC, uniforms)
    return words_MC.gather(1, drawn_M.unsqueeze(1)).squeeze(1), log_probs_M


def _invert(probs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample an index (M,) from each row of ``probs`` (M, C) by inversion, and its log probability.

    Rows need not sum to 1. One uniform number per row suffices; `torch.multinomial` draws one
    per entry, which on a CPU costs more than all matrix products of a step.
    """
    # On a GPU, rounding may make a cumulative sum fall where a word has probability 0. (Apple's
    # GPUs have no float64.)
    exact = torch.float64 if probs.device.type == "cuda" else torch.float32
    cumulated_MC = probs.cumsum(dim=1, dtype=exact)
    totals_M1 = cumulated_MC[:, -1:]
    below = torch.nextafter(totals_M1, torch.zeros_like(totals_M1))
    targets_M1 = torch.minimum(uniforms.unsqueeze(1) * totals_M1, below)
    # The first entry whose cumulative sum is above: never one of probability 0.
    drawn_M1 = torch.searchsorted(cumulated_MC, targets_M1, right=True)
    return drawn_M1.squeeze(1), (probs.gather(1, drawn_M1) / totals_M1).log().squeeze(1).float()
