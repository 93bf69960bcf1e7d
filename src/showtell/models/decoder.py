"""The one protocol between a model and everything that uses it.

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
    """What a decoder remembers between two words, in parts that a search need not understand.

    The rows of one image stand together and all images have equally many: of N rows over B images,
    row n describes image n // (N / B).
    """

    rows: tuple[Tensor, ...]  # first axis N: what the words so far have changed
    # First axis B: what `start` worked out of each image. Beams share it: projected regions of
    # 81 x 512 numbers would be copied for every beam at every word if they were part of the rows.
    images: tuple[Tensor, ...] = ()
    # No such axis: what `start` worked out of the weights, so that no step has to.
    weights: tuple[Tensor, ...] = ()

    def select(self, rows: Tensor) -> State:
        """The given rows (M,) in that order, over the same images; one may be taken repeatedly."""
        return self._replace(rows=tuple(tensor.index_select(0, rows) for tensor in self.rows))

    def keep(self, images: Tensor, rows: Tensor) -> State:
        """Only the given images (L,), and with them the given rows (M,)."""
        kept = tuple(tensor.index_select(0, images) for tensor in self.images)
        return self.select(rows)._replace(images=kept)


class StepDecoder(Protocol):
    """What writes word by word: all that a search sees of a model, or of several together."""

    feature_kind: FeatureKind

    def start(self, features: Tensor) -> State:
        """State before the first word, from features (B, D) pooled or (B, R, D) grid; N = B."""
        ...

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token per row (N,), and return unnormalized scores (N, V) of the next."""
        ...


class Decoder(StepDecoder, Protocol):
    """A model that turns image features into scores of the next word."""

    embedding: WordEmbedding

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


@runtime_checkable
class AttentiveDecoder(Decoder, Protocol):
    """A decoder that can say where it looked, for drawing; searches know nothing of it."""

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Where it looks for each next word of one caption: weights (T, R), at least 0.

        A row sums to 1, or to less by the share for which the model does not look at all.

        Args:
            features: (R, D), the grid of one image.
            token_ids: (T,) what the decoder reads: BEGIN, then the words. Row t belongs to the
                word after token t, the last row to END.
        """
        ...
