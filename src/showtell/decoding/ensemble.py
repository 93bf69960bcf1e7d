"""Several decoders with one vocabulary that write a caption together, word by word.

A re-ranked search may instead let each write its own captions: see `RerankedBeamSearch`.

Dimension key: B images, N rows, R regions, D feature size, V vocabulary, M members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from showtell.models.decoder import Decoder, State
from showtell.types import FeatureKind

Spans = Sequence[tuple[int, int]]  # half-open ranges of feature columns


class Ensemble(nn.Module):
    """Averages its members' scores (logits) of the next word, whatever their architectures.

    p(w | words, image) is proportional to the geometric mean of the members' p_m(w | words, image),
    because softmax ignores a constant added to a row. The arithmetic mean, the other usual choice,
    needs the softmax of every member, and wrote no better captions of Flickr8k: see captioning.md.

    Args:
        members: decoders with one vocabulary.
        columns: which of the D features each member reads, as half-open spans (from, to) in the
            order it reads them; None if all members read all features.

    Attributes:
        feature_kind: ``grid`` if any member reads a grid; the pooled features that the others read
            are its mean (see ``EncoderOutput``).
        columns: as given.
    """

    feature_kind: FeatureKind

    def __init__(
        self, members: Sequence[nn.Module], columns: Sequence[Spans] | None = None
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble has at least one member")
        if columns is not None and len(columns) != len(members):
            raise ValueError("an ensemble needs to know of each member what it reads")
        self.members = nn.ModuleList(members)
        kinds = {member.feature_kind for member in self._each()}
        self.feature_kind = "grid" if "grid" in kinds else "pooled"
        self.columns = columns
        # How many tensors each member's state has: rows, images, weights.
        self._parts: tuple[tuple[int, int, int], ...] = ()

    def start(self, features: Tensor) -> State:
        """The members' states in one, from features (B, D), or (B, R, D) if any reads a grid.

        Its tensors are those of the first member, then those of the second, and so on.
        """
        states = [member.start(own) for member, own in self.members_with_features(features)]
        self._parts = tuple((len(s.rows), len(s.images), len(s.weights)) for s in states)
        return _join(states)

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores (N, V) of the next word after reading ``token_ids`` (N,)."""
        pairs = zip(self._each(), self._split(state), strict=True)
        scores, states = zip(*(member.step(token_ids, part) for member, part in pairs), strict=True)
        mean_NV = sum(each.float() for each in scores) / len(scores)
        return mean_NV, _join(states)

    def members_with_features(self, features: Tensor) -> Iterator[tuple[Decoder, Tensor]]:
        """Each member with what it reads, (B, d) or (B, R, d), of features (B, D) or (B, R, D)."""
        for number, member in enumerate(self._each()):
            own = features if self.columns is None else _take(features, self.columns[number])
            is_mean = member.feature_kind == "pooled" and self.feature_kind == "grid"
            yield member, own.mean(dim=1) if is_mean else own

    def _each(self) -> Iterator[Decoder]:
        return (cast(Decoder, member) for member in self.members)

    def _split(self, state: State) -> Iterator[State]:
        rows, images, weights = map(iter, state)
        for counts in self._parts:
            parts = zip((rows, images, weights), counts, strict=True)
            yield State(*(tuple(next(each) for _ in range(count)) for each, count in parts))


def _take(features: Tensor, spans: Spans) -> Tensor:
    parts = [features[..., start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _join(states: Sequence[State]) -> State:
    return State(*(sum(parts, ()) for parts in zip(*states, strict=True)))
