"""Word embedding: pre-trained vectors, projected to the width the model wants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.text.vocabulary import PAD, SPECIALS


class WordEmbedding(nn.Module):
    """Token ids (...) -> embeddings (..., E), through word vectors of width W.

    With ``projected`` a linear layer maps W to E, so that 50-d GloVe serves any model width;
    without it E = W. The vectors start as a seeded normal draw; ``load_vectors`` puts GloVe there.
    """

    def __init__(self, *, vocabulary_size: int, vector_width: int, width: int | None) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary_size, vector_width, padding_idx=PAD)
        self.projection = nn.Identity() if width is None else nn.Linear(vector_width, width)
        self.width = vector_width if width is None else width

    def load_vectors(self, vectors: Tensor) -> None:
        """Put ``vectors`` (words, W) behind the special tokens, which keep their random ones."""
        with torch.no_grad():
            self.vectors.weight[len(SPECIALS) :].copy_(vectors)

    def train_vectors(self, trained: bool) -> None:
        """Let the optimizer change the word vectors, or freeze them; a projection always learns."""
        self.vectors.weight.requires_grad_(trained)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings (..., E) of ``token_ids`` (...)."""
        projected: Tensor = self.projection(self.vectors(token_ids))
        return projected
