"""The one protocol between a model and everything that uses it.

Dimension key of this package:
    B images, N rows (captions or beams), T positions, P real (unpadded) positions,
    V vocabulary, D feature size, R regions, W word-vector width, E embedding, H hidden.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from showtell.models.embedding import WordEmbedding
from showtell.types import FeatureKind

# What a decoder remembers between two words: tensors whose first axis is the row, so that beams
# can be reordered, images repeated and rows dropped without knowing the model.
State = tuple[Tensor, ...]


class Decoder(Protocol):
    """A model that turns image features into scores of the next word."""

    feature_kind: FeatureKind
    embedding: WordEmbedding

    def start(self, features: Tensor) -> State:
        """State before the first word, from features (B, D) pooled or (B, R, D) grid; B rows."""
        ...

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token per row (N,), and return unnormalized scores (N, V) of the next."""
        ...

    def __call__(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: scores (P, V) of the word after each real position.

        Args:
            features: (B, D) or (B, R, D), each image once.
            tokens: (N, T) what the decoder reads: BEGIN, then the words, padded with PAD.
            lengths: (N,) real positions of each row, on the CPU, at least 1.
            image_of_row: (N,) the image that each caption describes, in 0..B-1.

        The P = sum(lengths) positions come row by row, each row from left to right. Equal to
        feeding the rows to ``step`` one token at a time.
        """
        ...


def select(state: State, rows: Tensor) -> State:
    """The state of the given rows (M,), in that order; a row may be taken more than once."""
    return tuple(tensor.index_select(0, rows) for tensor in state)
