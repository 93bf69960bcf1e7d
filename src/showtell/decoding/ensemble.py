"""Several decoders of one vocabulary that write a caption together, word by word.

Dimension key: B images, N rows, R regions, D feature size, V vocabulary, M members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from showtell.models.decoder import State, StepDecoder
from showtell.types import FeatureKind


class Ensemble(nn.Module):
    """The mean of its members' scores of the next word, whatever their architectures.

    p(w | words, image) is proportional to the geometric mean of the members' p_m(w | words, image),
    because softmax takes a constant of each row away. The arithmetic mean, the other usual choice,
    needs the softmax of every member, and wrote no better captions of Flickr8k: see captioning.md.

    Attributes:
        feature_kind: the grid where any member reads it; the pooled features that the others read
            are its mean (see ``EncoderOutput``).
    """

    feature_kind: FeatureKind

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble has at least one member")
        self.members = nn.ModuleList(members)
        kinds = {member.feature_kind for member in self._each()}
        self.feature_kind = "grid" if "grid" in kinds else "pooled"
        # Tensors of each member's state: rows, images, weights.
        self._parts: tuple[tuple[int, int, int], ...] = ()

    def start(self, features: Tensor) -> State:
        """The states of all members as one, from features (B, D), or (B, R, D) if any reads a grid.

        Its tensors are those of the first member, then those of the second, and so on.
        """
        states = [member.start(self._read(member, features)) for member in self._each()]
        self._parts = tuple((len(s.rows), len(s.images), len(s.weights)) for s in states)
        return _join(states)

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores (N, V) of the next word after reading ``token_ids`` (N,)."""
        pairs = zip(self._each(), self._split(state), strict=True)
        scores, states = zip(*(member.step(token_ids, part) for member, part in pairs), strict=True)
        mean_NV = sum(each.float() for each in scores) / len(scores)
        return mean_NV, _join(states)

    def _each(self) -> Iterator[StepDecoder]:
        return (cast(StepDecoder, member) for member in self.members)

    def _read(self, member: StepDecoder, features: Tensor) -> Tensor:
        pooled = member.feature_kind == "pooled" and self.feature_kind == "grid"
        return features.mean(dim=1) if pooled else features

    def _split(self, state: State) -> Iterator[State]:
        rows, images, weights = map(iter, state)
        for counts in self._parts:
            parts = zip((rows, images, weights), counts, strict=True)
            yield State(*(tuple(next(each) for _ in range(count)) for each, count in parts))


def _join(states: Sequence[State]) -> State:
    return State(*(sum(parts, ()) for parts in zip(*states, strict=True)))
