"""Word embedding: pre-trained vectors, brought to the width the model wants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.text.vocabulary import PAD, SPECIALS


class WordEmbedding(nn.Module):
    """Token ids (...) -> embeddings (..., E), through word vectors of width W.

    A ``width`` E other than None is reached in one of two ways: a linear layer maps W to E, or,
    ``extended``, the vectors are the first W numbers of an embedding whose other E - W are
    learned; none is where W is E already, as with vectors that are all learned. The first way has
    rank W: enough to read words, too little to tell them apart when the output is tied to it. The
    vectors start as a seeded normal draw; ``load_vectors`` puts GloVe there.

    Raises:
        ValueError: an extended embedding that is narrower than its vectors.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        vector_width: int,
        width: int | None,
        extended: bool = False,
    ) -> None:
        super().__init__()
        self.width = vector_width if width is None else width
        self.vectors = nn.Embedding(vocabulary_size, vector_width, padding_idx=PAD)
        self.extension: nn.Embedding | None = None
        self.projection: nn.Module = nn.Identity()
        if extended and self.width == vector_width:
            _start_small(self.vectors, self.width)
        elif extended:
            self.extension = _extension(vocabulary_size, self.width, vector_width)
        elif width is not None:
            self.projection = nn.Linear(vector_width, width)

    def load_vectors(self, vectors: Tensor) -> None:
        """Put ``vectors`` (words, W) behind the special tokens, which keep their random ones."""
        with torch.no_grad():
            self.vectors.weight[len(SPECIALS) :].copy_(vectors)

    def train_vectors(self, trained: bool) -> None:
        """Let the optimizer change the word vectors, or freeze them; all else always learns."""
        self.vectors.weight.requires_grad_(trained)

    def table(self) -> Tensor:
        """The embeddings (V, E) of all words."""
        more = None if self.extension is None else self.extension.weight
        projected: Tensor = self.projection(_beside(self.vectors.weight, more))
        return projected

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings (..., E) of ``token_ids`` (...)."""
        projected: Tensor = self.projection(self.look_up(token_ids))
        return projected

    def look_up(self, token_ids: Tensor) -> Tensor:
        """What is stored of each word, before a projection: (..., W), or (..., E) extended."""
        more = None if self.extension is None else self.extension(token_ids)
        return _beside(self.vectors(token_ids), more)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A linear layer over embeddings, weight (G, E) and bias (G,), as one over ``look_up``.

        A projection and the layer after it are one linear map: six times fewer multiplications
        for a layer that reads 50 numbers a word instead of the 300 they are projected to.
        """
        if not isinstance(self.projection, nn.Linear):
            return weight, bias
        projection = self.projection
        return weight @ projection.weight, torch.addmv(bias, weight, projection.bias)


def _beside(vectors: Tensor, more: Tensor | None) -> Tensor:
    return vectors if more is None else torch.cat([vectors, more], dim=-1)


def _extension(vocabulary_size: int, width: int, vector_width: int) -> nn.Embedding:
    if width < vector_width:
        raise ValueError(
            f"embedding_width={width} must be at least the {vector_width} of the word vectors to "
            "extend them; with extend_vectors=false they are projected"
        )
    extension = nn.Embedding(vocabulary_size, width - vector_width, padding_idx=PAD)
    _start_small(extension, width)
    return extension


def _start_small(embedding: nn.Embedding, width: int) -> None:
    """So that scores tied to the embeddings (V, ``width``) start near even.

    Small also beside GloVe's 0.6: what the vectors already know should speak first.
    """
    nn.init.normal_(embedding.weight, std=width**-0.5)
    with torch.no_grad():
        embedding.weight[PAD].zero_()
