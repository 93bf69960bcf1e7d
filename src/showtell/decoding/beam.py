"""Greedy and beam search over the ``start/step`` protocol, all images at once.

Dimension key: B images, K beams, L live images, N = L * K rows, V vocabulary, C continuations,
T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from showtell.decoding.constraints import (
    Constraints,
    WordIds,
    constraints_for_decoding,
    word_ids_of,
)
from showtell.models.decoder import State, StepDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, Vocabulary


@dataclass(frozen=True, slots=True)
class Batching:
    """How a search batches its work on a device; affects its speed, not its captions.

    Attributes:
        rows: beams computed together, images times K.
        words: words decoded between two checks for images that are decided.
    """

    rows: int
    words: int


# With more rows, scores over a vocabulary of thousands leave a CPU's cache before they are read
# again; with fewer, matrix products are less efficient.
CPU_BATCHING = Batching(rows=768, words=1)
# A GPU needs large batches, and each check makes it wait for the host.
GPU_BATCHING = Batching(rows=8192, words=4)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded caption: its token ids without BEGIN and END, and how the search rated it."""

    token_ids: tuple[int, ...]
    # Log probability (natural, END included) / (words + 1)^length_penalty, plus what a reranking
    # search adds to it.
    score: float
    ended: bool  # False if cut off at the longest length, where a word was likelier than END


class Guide(Protocol):
    """A second opinion on which hypotheses a search should follow."""

    def __call__(self, images: Tensor, tokens: Tensor) -> Tensor:
        """What is added to the scores of hypotheses (L, C) of T tokens, of which END may be one.

        Args:
            images: (L,) index of each image among those of the search.
            tokens: (L, C, T) their token ids.
        """
        ...


# A guide ranks the OFFERED * K continuations of an image with the highest log probabilities: 2 * K,
# as many as are looked at without one, leave it too little choice, 10 * K gain nothing
# (docs/tried.md).
OFFERED = 4


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Beam search with a pool of ended hypotheses per image; one beam is greedy search.

    Attributes:
        beam_size: unended hypotheses kept per image, at least 1; the search of an image stops when
            as many have ended, or when none of the unended can become better than the best.
        min_length: shortest caption in words, at least 0.
        max_length: longest caption in words; at this length END is the only continuation.
        length_penalty: ended hypotheses compare by log probability / (words + 1)^penalty (Wu et al.
            2016, "Google's Neural Machine Translation System", equation 14 without its
            constants). 0 compares plain log probabilities, which prefers short captions.
        allow_unknown: whether UNKNOWN may be written. PAD and BEGIN never are.
        no_repeat: no n-gram of this many words is written twice; 0 allows all.
        bad_endings: words that are never the last one.
        repeatable: words that may be written more than once; None: all.
        word_ids: ids of the words in ``bad_endings`` and ``repeatable``; see `with_vocabulary`.
    """

    beam_size: int
    min_length: int
    max_length: int
    length_penalty: float
    allow_unknown: bool
    # Defaults for the `run.json` of runs older than these rules; conf/decoding sets them all.
    no_repeat: int = 0
    bad_endings: Sequence[str] = ()
    repeatable: Sequence[str] | None = None
    word_ids: WordIds | None = None

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size is at least 1, not {self.beam_size}")
        check_length_penalty(self.length_penalty)
        Constraints.of(self)  # raises for invalid rules

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """A copy of this search that knows the ids of the words in its rules."""
        return replace(self, word_ids=word_ids_of(self, vocabulary))

    @torch.inference_mode()
    def __call__(self, decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
        """The best caption of each image of ``features`` (B, D) or (B, R, D), in order."""
        return [h for ended in self._in_groups(decoder, features) for h in ended.best()]

    @torch.inference_mode()
    def several(
        self, decoder: StepDecoder, features: Tensor, count: int, guide: Guide | None = None
    ) -> list[list[Hypothesis]]:
        """Up to ``count`` ended hypotheses of each image, best first, at least one.

        The search of an image stops when ``count`` have ended; at the longest length there may be
        fewer. Of more, those with the best scores are kept.

        With a ``guide`` hypotheses compete to go on, or to end, by log probability /
        tokens^length_penalty plus what it adds. The scores of those that have ended do not contain
        it.
        """
        groups = self._in_groups(decoder, features, count, guide)
        return [hypotheses for ended in groups for hypotheses in ended.all()]

    def _in_groups(
        self,
        decoder: StepDecoder,
        features: Tensor,
        count: int | None = None,
        guide: Guide | None = None,
    ) -> Iterator[Ended]:
        """Search the images group by group; without ``count`` only each one's best is needed."""
        rules = constraints_for_decoding(self)
        batching = batching_for(features.device)
        first = 0
        for group in torch.split(features, max(1, batching.rows // self.beam_size)):
            yield self._search(decoder, group, rules, batching.words, count, guide, first)
            first += len(group)

    def _search(
        self,
        decoder: StepDecoder,
        features: Tensor,
        rules: Constraints,
        words_between: int,
        count: int | None,
        guide: Guide | None,
        first: int,
    ) -> Ended:
        """Decode all images of ``features`` together; to the guide the first is ``first``."""
        beams = Beams(decoder.start(features), len(features), self.beam_size)
        kept = count or self.beam_size
        ended = Ended(len(features), kept, self.max_length, features.device)
        for words in range(self.max_length + 1):
            scores_LKV = beams.step(decoder)
            rules.forbid(scores_LKV.flatten(0, 1), beams.tokens.flatten(0, 1))
            cut_LK = end_all(scores_LKV) if words == self.max_length else None
            totals_LC = beams.totals(scores_LKV).flatten(1)
            norm = length_norm(words, self.length_penalty)
            # At most K end, one for each beam, so that of 2K or more K can go on.
            offered = self.beam_size * (2 if guide is None else OFFERED)
            best = best_continuations(totals_LC, offered, scores_LKV.shape[2])
            if guide is not None:
                worth_LC = guide(beams.images + first, beams.extended(best))
                scores_LC = best.log_probs / norm + worth_LC
                best = best.take(scores_LC.argsort(dim=1, descending=True, stable=True))
            ended.add(beams, ended_among(best, self.beam_size), words, norm, cut_LK)
            beams.advance(continuing(best, self.beam_size))
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


def batching_for(device: torch.device) -> Batching:
    """The batching of searches on ``device``."""
    return CPU_BATCHING if device.type == "cpu" else GPU_BATCHING


def check_length_penalty(penalty: float) -> None:
    """Raise ValueError unless ``penalty`` is finite and at least 0."""
    if penalty < 0:
        raise ValueError("a negative length_penalty would make longer captions ever worse")
    if not penalty < math.inf:
        raise ValueError(f"length_penalty is a finite number, not {penalty}")


def length_norm(words: int, penalty: float) -> float:
    """What the log probability of a caption of ``words`` words is divided by."""
    return float((words + 1) ** penalty)


class Continuations(NamedTuple):
    """Beams extended by one word, best first for each image; minus infinity marks a dead one."""

    log_probs: Tensor  # (L, C) of the hypothesis with its new word
    parents: Tensor  # (L, C) the extended beam, in 0..K-1
    token_ids: Tensor  # (L, C) the new word

    def take(self, chosen: Tensor) -> Continuations:
        """Those with the indices ``chosen`` (L, any) among those of their image."""
        return Continuations(*(each.gather(1, chosen) for each in self))


def best_continuations(totals: Tensor, count: int, vocabulary_size: int) -> Continuations:
    """The best ``count`` in each row of ``totals`` (L, K * V), filled up with dead ones."""
    found = min(count, totals.shape[1])
    log_probs, flat = totals.topk(found, dim=1)
    log_probs = pad(log_probs, (0, count - found), value=-torch.inf)
    flat = pad(flat, (0, count - found))
    return Continuations(log_probs, flat // vocabulary_size, flat % vocabulary_size)


def ended_among(best: Continuations, size: int) -> Continuations:
    """The continuations that end, if they are among the best ``size``; the others are dead."""
    ends = best.token_ids == END
    ends[:, size:].fill_(False)
    return best._replace(log_probs=best.log_probs.masked_fill(~ends, -torch.inf))


def continuing(best: Continuations, size: int) -> Continuations:
    """The first ``size`` continuations that do not end, filled up with dead ones."""
    live = best.log_probs.masked_fill(best.token_ids == END, -torch.inf)
    dead_last = live.isneginf().argsort(dim=1, stable=True)
    return best._replace(log_probs=live).take(dead_last[:, :size])


class Beams:
    """Unended hypotheses of the images still searched: one each at first, then K each."""

    def __init__(self, start: State, images: int, size: int) -> None:
        device = start.rows[0].device
        self.size = size
        self.images = torch.arange(images, device=device)  # (L,) index of each live image
        self.state = start  # of the rows: (N, ...)
        # All beams of an image begin alike: until the first word one row stands for them.
        self.tokens = torch.full((images, 1, 0), PAD, device=device)  # (L, K, words so far)
        self.log_probs = torch.zeros((images, 1), device=device)  # (L, K)
        self.last = torch.full((images,), BEGIN, device=device)  # (N,)
        self._memory: tuple[Tensor, Tensor] | None = None

    def step(self, decoder: StepDecoder) -> Tensor:
        """Feed each row's last word to the decoder; log probabilities (L, K, V) of the next word.

        The result is valid until the next step, and may be overwritten.
        """
        scores_NV, self.state = decoder.step(self.last, self.state)
        rows, words = scores_NV.shape
        if self._memory is None:
            # Allocated once: at every word the system would have to map and clear new pages.
            most = len(self.images) * self.size
            self._memory = (
                torch.empty((most, words), device=scores_NV.device),
                torch.empty((most, words), device=scores_NV.device),
            )
        plain, log_probs = (part[:rows] for part in self._memory)
        # A decoder's scores may have gaps between their rows, which slow softmax down.
        whole = scores_NV.float() if scores_NV.is_contiguous() else plain.copy_(scores_NV)
        torch.log_softmax(whole, dim=-1, out=log_probs)
        return log_probs.view(*self.log_probs.shape, words)

    def totals(self, scores_LKV: Tensor) -> Tensor:
        """Log probabilities (L, K, V) of the hypotheses with one more word, computed in place."""
        return scores_LKV.add_(self.log_probs.unsqueeze(-1))

    def words_of(self, parents: Tensor) -> Tensor:
        """The words so far (L, C, words) of the beams ``parents`` (L, C)."""
        return self.tokens.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.tokens.shape[-1]))

    def extended(self, by: Continuations) -> Tensor:
        """The token ids (L, C, words + 1) of the beams and their continuations."""
        return torch.cat([self.words_of(by.parents), by.token_ids.unsqueeze(-1)], dim=-1)

    def advance(self, chosen: Continuations) -> None:
        """Make the chosen continuations, K for each image, the new beams."""
        images, width = self.log_probs.shape
        self.log_probs, parents, token_ids = chosen
        self.tokens = self.extended(chosen)
        first_rows = torch.arange(images, device=parents.device).unsqueeze(1) * width
        self.state = self.state.select((first_rows + parents).flatten())
        self.last = token_ids.flatten()

    def stop(self, decided: Tensor) -> None:
        """Mark the beams of the decided images (L,) as dead."""
        self.log_probs.masked_fill_(decided.unsqueeze(1), -torch.inf)

    def drop(self, decided: Tensor) -> None:
        """Remove the decided images (L,) from the computation."""
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
    """The best K ended hypotheses of every image."""

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
        """Add hypotheses of ``words`` words that end, as far as they are among the best K.

        ``norm`` divides their log probability. At the longest length ``cut_LK`` marks the beams
        that would have gone on.
        """
        log_probs, parents, _ = offers
        size, max_length = self.tokens.shape[1:]
        live = beams.images
        offered = pad(beams.words_of(parents), (0, max_length - words), value=PAD)
        scores = torch.cat([self.scores[live], log_probs / norm], dim=1)
        tokens = torch.cat([self.tokens[live], offered], dim=1)
        lengths = torch.cat([self.lengths[live], torch.full_like(parents, words)], dim=1)
        self.scores[live], chosen = scores.topk(size, dim=1)
        self.tokens[live] = tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, max_length))
        self.lengths[live] = lengths.gather(1, chosen)
        if cut_LK is not None:  # at the longest length; nothing is cut before
            cut = torch.cat([self.cut[live], cut_LK.gather(1, parents)], dim=1)
            self.cut[live] = cut.gather(1, chosen)

    def decided(self, images: Tensor, bound: Tensor | None) -> Tensor:
        """Which ``images`` (L,) have K ended hypotheses, or one that no unended one can surpass.

        A log probability only falls as words are added, so an unended hypothesis scores at most
        its present log probability divided by the norm of the longest caption: ``bound`` (L,) is
        the largest such score. None: only K ended hypotheses decide.
        """
        full = self.scores[images].isfinite().all(dim=1)
        return full if bound is None else full | (self.scores[images, 0] >= bound)

    def best(self) -> list[Hypothesis]:
        """The best caption of each image."""
        return [found[0] for found in self._rows(1)]

    def all(self) -> list[list[Hypothesis]]:
        """All captions of each image, best first; at least one."""
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
    """Leave END as the only continuation, in place; returns which beams (L, K) preferred a word."""
    cut_LK = scores_LKV.argmax(dim=-1) != END
    scores_LKV[..., :END].fill_(-torch.inf)
    scores_LKV[..., END + 1 :].fill_(-torch.inf)
    return cut_LK
