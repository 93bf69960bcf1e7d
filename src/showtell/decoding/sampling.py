"""Captions drawn at random from what a decoder thinks of the next word.

Dimension key: B images, S samples of each, N = B * S captions, M rows still computed, T positions,
V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from showtell.decoding.beam import CPU_PACE, GPU_PACE
from showtell.models.decoder import State, StepDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN


class Samples(NamedTuple):
    """Drawn captions, those of one image side by side: caption n describes image n // S."""

    tokens: Tensor  # (N, T) int64: words, END where it was drawn, then PAD
    lengths: Tensor  # (N,) int64: tokens before PAD, END included
    ended: Tensor  # (N,) bool: whether END was drawn; False where the longest length cut it off
    log_probs: Tensor  # (N,) float32: natural, of those tokens under what they were drawn from


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

    PAD, BEGIN and UNKNOWN are never drawn; the other words share their probability.

    Args:
        decoder: in the mode it shall be in; no gradient is kept.
        features: (B, D) or (B, R, D).
        samples: captions of each image, S.
        max_length: longest caption in words; T is one more, for END.
        generator: on any device; it is asked for one number for each position of each caption,
            whenever that ends.
    """
    shape = (len(features) * samples, max_length + 1)
    uniforms_NT = torch.rand(shape, generator=generator, device=generator.device)
    rows = _Rows(decoder.start(features), samples, uniforms_NT.to(features.device))
    words_between = (CPU_PACE if features.device.type == "cpu" else GPU_PACE).words
    for position in range(max_length + 1):
        scores_MV, rows.state = decoder.step(rows.last, rows.state)
        rows.write(position, scores_MV.float())
        if (position + 1) % words_between == 0 and not rows.drop_ended():
            break
    return rows.found()


class _Rows:
    """The captions still being written, each beside the others of its image."""

    def __init__(self, start: State, samples: int, uniforms_NT: Tensor) -> None:
        count, device = len(uniforms_NT), uniforms_NT.device
        self.uniforms = uniforms_NT
        self.tokens = torch.full(uniforms_NT.shape, PAD, device=device)
        self.log_probs = torch.zeros(count, device=device)
        self.live = torch.ones(count, dtype=torch.bool, device=device)
        # Which caption each row writes, by image: (groups, rows of a group). Rows of a state
        # without a part that is shared by image may leave one by one.
        self.captions = torch.arange(count, device=device).view(-1, samples)
        self.state = start.select(self.captions.flatten() // samples)
        if not start.images:
            self.captions = self.captions.view(-1, 1)
        self.last = torch.full((count,), BEGIN, device=device)

    def write(self, position: int, scores_MV: Tensor) -> None:
        """Draw a word for each row; END and PAD for those that have ended."""
        captions_M = self.captions.flatten()
        drawn_M, log_probs_M = draw(scores_MV, self.uniforms[captions_M, position])
        live_M = self.live[captions_M]
        if position == self.tokens.shape[1] - 1:  # a word more would be too long
            live_M = live_M & (drawn_M == END)
        self.last = drawn_M.where(live_M, PAD)
        self.tokens[captions_M, position] = self.last
        self.log_probs[captions_M] += log_probs_M.where(live_M, 0.0)
        self.live[captions_M] = live_M & (drawn_M != END)

    def drop_ended(self) -> bool:
        """Compute nothing more for captions that have ended, as far as groups can be narrowed.

        Whether any is left. All groups stay equally wide, as a state wants them.
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
        """What was written."""
        ended = (self.tokens == END).any(dim=1)
        lengths = (self.tokens != PAD).sum(dim=1)
        return Samples(self.tokens, lengths, ended, self.log_probs)


def draw(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """A word of each row (M,) and its log probability, by inversion of the distribution.

    One uniform number in [0, 1) decides on a word; `torch.multinomial` wants one for each word of
    the vocabulary, which on a CPU costs more than all products of a step.
    """
    probs_MV = torch.softmax(scores, dim=1)
    for token_id in (PAD, BEGIN, UNKNOWN):
        probs_MV[:, token_id].fill_(0.0)
    # A GPU's sums of prefixes may fall by a rounding where a word has no probability.
    exact = torch.float32 if scores.device.type == "cpu" else torch.float64
    cumulated_MV = probs_MV.cumsum(dim=1, dtype=exact)
    totals_M1 = cumulated_MV[:, -1:]
    below = torch.nextafter(totals_M1, torch.zeros_like(totals_M1))
    targets_M1 = torch.minimum(uniforms.unsqueeze(1) * totals_M1, below)
    # The first word whose sum is above: never one of probability 0.
    drawn_M1 = torch.searchsorted(cumulated_MV, targets_M1, right=True)
    return drawn_M1.squeeze(1), (probs_MV.gather(1, drawn_M1) / totals_M1).log().squeeze(1).float()
