"""The last layer: scores of every word of the vocabulary.

Dimension key: P positions, V vocabulary, E embedding, M width of what is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.models.embedding import WordEmbedding
from showtell.models.linear import AlignedLinear, aligned_linear


class WordScores(nn.Module):
    """Scores (P, V) from the last hidden layer (P, M), by a matrix of their own or a tied one.

    Tied, the word embeddings are read and written with: M is mapped to E, and a word's score is
    the product with its embedding (Press and Wolf 2017, "Using the Output Embedding to Improve
    Language Models"). That halves the weights, and rare words learn from both sides.
    """

    def __init__(self, width: int, embedding: WordEmbedding, *, tied: bool) -> None:
        super().__init__()
        vocabulary_size = embedding.vectors.num_embeddings
        self.tied = tied
        if tied:
            self.projection = nn.Linear(width, embedding.width, bias=False)
            self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        else:
            self.projection = AlignedLinear(width, vocabulary_size)

    def forward(self, hidden: Tensor, embedding: WordEmbedding) -> Tensor:
        """Scores (P, V); ``embedding`` is the one the layer was made for.

        It is an argument and no part of this module: weights are saved under one name each.
        """
        projected: Tensor = self.projection(hidden)
        return aligned_linear(projected, embedding.table(), self.bias) if self.tied else projected
