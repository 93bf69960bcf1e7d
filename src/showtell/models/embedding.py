"""Word embedding: pretrained vectors, projected or extended to the model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.text.vocabulary import PAD, SPECIALS


class WordEmbedding(nn.Module):
    """Token ids (...) -> embeddings (..., E), through word vectors of width W.

    With ``width`` None, E is W. Otherwise a linear layer projects W to E, or, if ``extended``, the
    vectors are the first W components of an embedding whose other E - W (if any) are learned. A
    projection has rank W: enough for reading words, too little for telling them apart in a tied
    output layer. The vectors are initialized at random; ``load_vectors`` puts GloVe there.

    Raises:
        ValueError: ``extended`` with a width less than W.
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
        """Copy ``vectors`` (words, W) after the special tokens, which keep their initial ones."""
        with torch.no_grad():
            self.vectors.weight[len(SPECIALS) :].copy_(vectors)

    def train_vectors(self, trained: bool) -> None:
        """Unfreeze or freeze the word vectors; an extension or projection is always trained."""
        self.vectors.weight.requires_grad_(trained)

    def table(self) -> Tensor:
        """The embeddings (V, E) of all tokens."""
        more = None if self.extension is None else self.extension.weight
        projected: Tensor = self.projection(_beside(self.vectors.weight, more))
        return projected

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings (..., E) of ``token_ids`` (...)."""
        projected: Tensor = self.projection(self.look_up(token_ids))
        return projected

    def look_up(self, token_ids: Tensor) -> Tensor:
        """The stored vectors, before a projection: (..., W), or (..., E) if extended."""
        more = None if self.extension is None else self.extension(token_ids)
        return _beside(self.vectors(token_ids), more)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Merge a linear layer over embeddings with the projection before it.

        Takes weight (G, E) and bias (G,); returns those of an equal layer over ``look_up``: weight
        (G, W), or unchanged without a projection. Reading 50 numbers per word instead of the 300
        they are projected to takes six times fewer multiplications.
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
    """Initialize with std ``width``**-0.5, so that tied logits are nearly uniform at first.

    It is also small compared to GloVe's 0.6, so that pretrained components dominate at first.
    """
    nn.init.normal_(embedding.weight, std=width**-0.5)
    with torch.no_grad():
        embedding.weight[PAD].zero_()
