"""The output layer: logits of all words of the vocabulary.

Dimension key: P positions, V vocabulary, E embedding, M input width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.models.embedding import WordEmbedding
from showtell.models.linear import AlignedLinear, aligned_linear


class OutputLayer(nn.Module):
    """Logits (P, V) from the last hidden layer (P, M), with weights of their own or tied ones.

    Tied weights are the word embeddings: M is projected to E, and a word's logit is the dot product
    with its embedding plus a bias (Press and Wolf 2017, "Using the Output Embedding to Improve
    Language Models"). That halves the weights per word, and embeddings of rare words are trained
    both as input and as output.
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
        """Logits (P, V); ``embedding`` is the one that the layer was made for.

        It is passed in instead of being a submodule, so that its weights are saved only once.
        """
        projected: Tensor = self.projection(hidden)
        return aligned_linear(projected, embedding.table(), self.bias) if self.tied else projected
