"""The protocols between models and everything that uses them.

Dimension key of this package:
    B images, N rows (captions or beams), T positions, P real (unpadded) positions,
    V vocabulary, D feature size, R regions, W word-vector width, E embedding, H hidden.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from showtell.models.embedding import WordEmbedding
from showtell.types import FeatureKind


class State(NamedTuple):
    """What a decoder remembers between two words; its tensors are opaque to a search.

    Rows of one image are adjacent, and all images have the same number: of N rows over B images,
    row n belongs to image n // (N / B).
    """

    rows: tuple[Tensor, ...]  # first axis N: depends on the words so far
    # First axis B: computed by `start` for each image and shared by its beams. As part of the rows,
    # projected regions of 81 x 512 numbers would be copied for every beam at every word.
    images: tuple[Tensor, ...] = ()
    # Neither axis: computed by `start` from the weights, so that steps need not.
    weights: tuple[Tensor, ...] = ()

    def select(self, rows: Tensor) -> State:
        """The rows with indices ``rows`` (M,), which may repeat, over the same images."""
        return self._replace(rows=tuple(tensor.index_select(0, rows) for tensor in self.rows))

    def keep(self, images: Tensor, rows: Tensor) -> State:
        """Only the images with indices ``images`` (L,) and the rows with indices ``rows`` (M,)."""
        kept = tuple(tensor.index_select(0, images) for tensor in self.images)
        return self.select(rows)._replace(images=kept)


class StepDecoder(Protocol):
    """The part of a model, or of an ensemble, that a search uses: decoding word by word."""

    feature_kind: FeatureKind

    def start(self, features: Tensor) -> State:
        """The initial state, from pooled (B, D) or grid (B, R, D) features; N = B rows."""
        ...

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token per row (N,); return logits (N, V) of the next and the new state."""
        ...


class Decoder(StepDecoder, Protocol):
    """A model that maps image features and a prefix to logits of the next word."""

    embedding: WordEmbedding

    def __call__(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V) of the word after each real position.

        Args:
            features: (B, D) or (B, R, D), each image once.
            tokens: (N, T) input tokens: BEGIN, then the words, padded with PAD.
            lengths: (N,) real positions of each row, on the CPU, at least 1.
            image_of_row: (N,) the image that each caption describes, in 0..B-1.

        The P = sum(lengths) positions are ordered row by row, left to right. The result equals that
        of feeding the rows to ``step`` one token at a time.
        """
        ...


@runtime_checkable
class AttentiveDecoder(Decoder, Protocol):
    """A decoder that exposes its attention over regions, for visualization only."""

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (T, R), at least 0, for each next word of one caption.

        A row sums to 1, or to less if the model can attend to something besides the regions.

        Args:
            features: (R, D), the grid of one image.
            token_ids: (T,) input tokens: BEGIN, then the words. Row t belongs to the word after
                token t, the last row to END.
        """
        ...
