"""Greedy and beam search over the ``start/step`` protocol, all images at once.

Dimension key: B images, K beams, L live images, N = L * K rows, V vocabulary, T longest caption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from showtell.decoding.constraints import (
    Constraints,
    WordIds,
    told_constraints,
    word_ids_of,
)
from showtell.models.decoder import State, StepDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, Vocabulary


@dataclass(frozen=True, slots=True)
class Pace:
    """How a search goes about its work on a device; it changes no caption.

    Attributes:
        rows: beams computed together, images times K.
        words: words written between two looks at which images are decided.
    """

    rows: int
    words: int


# Scores of more rows over a vocabulary of thousands leave a CPU's cache before they are read again;
# products of fewer rows are slower.
CPU_PACE = Pace(rows=768, words=1)
# A GPU wants all it can get, and a look makes it wait for the host.
GPU_PACE = Pace(rows=8192, words=4)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded caption: its token ids without BEGIN and END, and how the search rated it."""

    token_ids: tuple[int, ...]
    # Log probability (natural, END included) / (words + 1)^length_penalty, and what a search that
    # compares the ended ones once more adds to it.
    score: float
    ended: bool  # False when the longest length made it end, though another word was likelier


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Beam search with a pool of ended captions per image; one beam is greedy search.

    Attributes:
        beam_size: unended captions kept per image, at least 1; the search of an image is over
            when as many have ended, or when none of those left can become better.
        min_length: shortest caption in words, at least 0.
        max_length: longest caption in words; at this length END is the only continuation.
        length_penalty: ended captions compare by log probability / (words + 1)^penalty (Wu et al.
            2016, "Google's Neural Machine Translation System", equation 14 without its
            constants). 0 compares plain log probabilities, which prefers short captions.
        allow_unknown: whether UNKNOWN may be written. PAD and BEGIN never are.
        no_repeat: no sequence of so many words is written twice; 0 allows all.
        bad_endings: words that are never the last one.
        repeatable: words that may be written more than once; None: all.
        word_ids: the ids of these words, by `with_vocabulary`.
    """

    beam_size: int
    min_length: int
    max_length: int
    length_penalty: float
    allow_unknown: bool
    # Runs of before these rules have none in their `run.json`; conf/decoding gives them all.
    no_repeat: int = 0
    bad_endings: Sequence[str] = ()
    repeatable: Sequence[str] | None = None
    word_ids: WordIds | None = None

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size is at least 1, not {self.beam_size}")
        check_length_penalty(self.length_penalty)
        Constraints.of(self)  # refuses what makes no sense

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """The same search, told the ids of its words."""
        return replace(self, word_ids=word_ids_of(self, vocabulary))

    @torch.inference_mode()
    def __call__(self, decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
        """The best caption of each image of ``features`` (B, D) or (B, R, D), in order."""
        return [h for ended in self._in_groups(decoder, features, None) for h in ended.best()]

    @torch.inference_mode()
    def several(self, decoder: StepDecoder, features: Tensor, count: int) -> list[list[Hypothesis]]:
        """The best ``count`` captions of each image that the beams come by, the best first.

        The search of an image is over when as many have ended. There is at least one, and there are
        fewer than ``count`` where the longest length ends them.
        """
        groups = self._in_groups(decoder, features, count)
        return [hypotheses for ended in groups for hypotheses in ended.all()]

    def _in_groups(
        self, decoder: StepDecoder, features: Tensor, count: int | None
    ) -> Iterator[Ended]:
        """What ends, of some images after the others; without a ``count`` the best is enough."""
        rules = told_constraints(self)
        pace = pace_on(features.device)
        for group in torch.split(features, max(1, pace.rows // self.beam_size)):
            yield self._search(decoder, group, rules, pace.words, count)

    def _search(
        self,
        decoder: StepDecoder,
        features: Tensor,
        rules: Constraints,
        words_between: int,
        count: int | None,
    ) -> Ended:
        """Decode all images of ``features`` together."""
        beams = Beams(decoder.start(features), len(features), self.beam_size)
        kept = count or self.beam_size
        ended = Ended(len(features), kept, self.max_length, features.device)
        for words in range(self.max_length + 1):
            scores_LKV = beams.step(decoder)
            rules.forbid(scores_LKV.flatten(0, 1), beams.tokens.flatten(0, 1))
            cut_LK = end_all(scores_LKV) if words == self.max_length else None
            totals_LC = beams.totals(scores_LKV).flatten(1)
            # Of 2K continuations at most K end, so that K are left to go on.
            best = best_continuations(totals_LC, 2 * self.beam_size, scores_LKV.shape[2])
            norm = length_norm(words, self.length_penalty)
            ended.add(beams, ending(best, self.beam_size), words, norm, cut_LK)
            beams.advance(going_on(best, self.beam_size))
            bound_L = beams.log_probs.amax(dim=1) / length_norm(
                self.max_length, self.length_penalty
            )
            decided = ended.decided(beams.images, bound_L if count is None else None)
            beams.stop(decided)
            if (words + 1) % words_between == 0:
                beams.drop(decided)
                if len(beams.images) == 0:
                    break
        return ended


def pace_on(device: torch.device) -> Pace:
    """How searches go about their work there."""
    return CPU_PACE if device.type == "cpu" else GPU_PACE


def check_length_penalty(penalty: float) -> None:
    """Refuse one that would make longer captions ever worse."""
    if penalty < 0:
        raise ValueError("a negative length_penalty would make longer captions ever worse")
    if not penalty < math.inf:
        raise ValueError(f"length_penalty is a finite number, not {penalty}")


def length_norm(words: int, penalty: float) -> float:
    """What the log probability of a caption of so many words is divided by."""
    return float((words + 1) ** penalty)


class Continuations(NamedTuple):
    """Ways to go on, each image's best first; minus infinity marks a dead one."""

    log_probs: Tensor  # (L, C) of the caption with its new word
    parents: Tensor  # (L, C) the beam, in 0..K-1
    token_ids: Tensor  # (L, C) the new word


def best_continuations(totals: Tensor, count: int, vocabulary_size: int) -> Continuations:
    """The best ``count`` for each row of ``totals`` (L, K * V); dead ones where there are fewer."""
    found = min(count, totals.shape[1])
    log_probs, flat = totals.topk(found, dim=1)
    log_probs = pad(log_probs, (0, count - found), value=-torch.inf)
    flat = pad(flat, (0, count - found))
    return Continuations(log_probs, flat // vocabulary_size, flat % vocabulary_size)


def ending(best: Continuations, size: int) -> Continuations:
    """Of the best ``size`` those that end; the others are dead."""
    ends = best.token_ids == END
    ends[:, size:].fill_(False)
    return best._replace(log_probs=best.log_probs.masked_fill(~ends, -torch.inf))


def going_on(best: Continuations, size: int) -> Continuations:
    """The best ``size`` of those that do not end."""
    live = best.log_probs.masked_fill(best.token_ids == END, -torch.inf)
    log_probs, chosen = live.topk(size, dim=1)
    return Continuations(
        log_probs, best.parents.gather(1, chosen), best.token_ids.gather(1, chosen)
    )


class Beams:
    """The unended captions of each image still searched: one at first, K after the first word."""

    def __init__(self, start: State, images: int, size: int) -> None:
        device = start.rows[0].device
        self.size = size
        self.images = torch.arange(images, device=device)  # (L,) which image each group is
        self.state = start  # of the rows: (N, ...)
        # All beams of an image begin alike: until the first word one row does for them.
        self.tokens = torch.full((images, 1, 0), PAD, device=device)  # (L, K, words so far)
        self.log_probs = torch.zeros((images, 1), device=device)  # (L, K)
        self.last = torch.full((images,), BEGIN, device=device)  # (N,)
        self._memory: tuple[Tensor, Tensor] | None = None

    def step(self, decoder: StepDecoder) -> Tensor:
        """Advance all rows by their last word; log probabilities (L, K, V) of the next.

        They are good until the next step, and may be written over.
        """
        scores_NV, self.state = decoder.step(self.last, self.state)
        rows, words = scores_NV.shape
        if self._memory is None:
            # Megabytes that were asked for anew at every word would come page by page, cleared.
            most = len(self.images) * self.size
            self._memory = (
                torch.empty((most, words), device=scores_NV.device),
                torch.empty((most, words), device=scores_NV.device),
            )
        plain, log_probs = (part[:rows] for part in self._memory)
        # Between the rows of a decoder's scores there may be gaps, which softmax is slow with.
        whole = scores_NV.float() if scores_NV.is_contiguous() else plain.copy_(scores_NV)
        torch.log_softmax(whole, dim=-1, out=log_probs)
        return log_probs.view(*self.log_probs.shape, words)

    def totals(self, scores_LKV: Tensor) -> Tensor:
        """Log probabilities (L, K, V) of the captions, each a word longer; written over."""
        return scores_LKV.add_(self.log_probs.unsqueeze(-1))

    def advance(self, chosen: Continuations) -> None:
        """Go on with these, K for each image."""
        images, width = self.log_probs.shape
        self.log_probs, parents, token_ids = chosen
        prefix = self.tokens.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.tokens.shape[-1]))
        self.tokens = torch.cat([prefix, token_ids.unsqueeze(-1)], dim=-1)
        first_rows = torch.arange(images, device=parents.device).unsqueeze(1) * width
        self.state = self.state.select((first_rows + parents).flatten())
        self.last = token_ids.flatten()

    def stop(self, decided: Tensor) -> None:
        """Let nothing that is still computed for the decided images (L,) count."""
        self.log_probs.masked_fill_(decided.unsqueeze(1), -torch.inf)

    def drop(self, decided: Tensor) -> None:
        """Compute nothing more for the decided images (L,)."""
        left = (~decided).nonzero().squeeze(1)
        if len(left) == len(decided):
            return
        rows = (
            left.unsqueeze(1) * self.size + torch.arange(self.size, device=left.device)
        ).flatten()
        self.images, self.tokens = self.images[left], self.tokens[left]
        self.log_probs, self.last = self.log_probs[left], self.last[rows]
        self.state = self.state.keep(left, rows)


class Ended:
    """The best K ended captions of every image."""

    def __init__(self, images: int, beams: int, max_length: int, device: torch.device) -> None:
        self.scores = torch.full((images, beams), -torch.inf, device=device)
        self.tokens = torch.full((images, beams, max_length), PAD, device=device)
        self.lengths = torch.zeros((images, beams), dtype=torch.long, device=device)
        self.cut = torch.zeros((images, beams), dtype=torch.bool, device=device)

    def add(
        self,
        beams: Beams,
        offers: Continuations,
        words: int,
        norm: float,
        cut_LK: Tensor | None,
    ) -> None:
        """Offer captions that end after ``words``; ``norm`` divides their log probability.

        ``cut_LK`` tells at the longest length which captions would have gone on.
        """
        log_probs, parents, _ = offers
        size, max_length = self.tokens.shape[1:]
        live = beams.images
        offered = beams.tokens.gather(1, parents.unsqueeze(-1).expand(-1, -1, words))
        offered = pad(offered, (0, max_length - words), value=PAD)
        scores = torch.cat([self.scores[live], log_probs / norm], dim=1)
        tokens = torch.cat([self.tokens[live], offered], dim=1)
        lengths = torch.cat([self.lengths[live], torch.full_like(parents, words)], dim=1)
        self.scores[live], chosen = scores.topk(size, dim=1)
        self.tokens[live] = tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, max_length))
        self.lengths[live] = lengths.gather(1, chosen)
        if cut_LK is not None:  # the last words: nothing was cut before
            cut = torch.cat([self.cut[live], cut_LK.gather(1, parents)], dim=1)
            self.cut[live] = cut.gather(1, chosen)

    def decided(self, images: Tensor, bound: Tensor | None) -> Tensor:
        """Which ``images`` (L,) have K ended captions, or one that none left can surpass.

        A log probability only falls as words are added, so an unended caption ends at most with
        what it has now, divided by the norm of the longest caption: ``bound`` (L,). None: only K
        ended captions decide.
        """
        full = self.scores[images].isfinite().all(dim=1)
        return full if bound is None else full | (self.scores[images, 0] >= bound)

    def best(self) -> list[Hypothesis]:
        """The best caption of each image."""
        return [found[0] for found in self._rows(1)]

    def all(self) -> list[list[Hypothesis]]:
        """All captions of each image, the best first; at least one."""
        return self._rows(self.scores.shape[1])

    def _rows(self, count: int) -> list[list[Hypothesis]]:
        columns = (self.tokens, self.lengths, self.scores, self.cut)
        images = zip(*(column[:, :count].tolist() for column in columns), strict=True)
        return [
            [
                Hypothesis(tuple(token_ids[:length]), score, ended=not cut)
                for token_ids, length, score, cut in zip(*image, strict=True)
                if score != -math.inf
            ]
            for image in images
        ]


def end_all(scores_LKV: Tensor) -> Tensor:
    """Leave END as the only continuation; which captions (L, K) had a more probable one."""
    cut_LK = scores_LKV.argmax(dim=-1) != END
    scores_LKV[..., :END].fill_(-torch.inf)
    scores_LKV[..., END + 1 :].fill_(-torch.inf)
    return cut_LK
