"""``merge_glove``: an LSTM that reads only words, merged with the image before the softmax.

The architecture of the classic Flickr8k notebooks and of Tanti et al. 2018, "Where to put the
image in an image caption generator": the LSTM is a language model of the prefix, the image enters
through a dense branch, the two are added, and another dense layer comes before the output layer.

Dimension key: B images, N rows, T positions, P real positions, V vocabulary, D feature size,
W word-vector width, E embedding, H hidden (the width of both branches and of the dense layer).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.models.decoder import State
from showtell.models.dropout import LockedDropout
from showtell.models.embedding import WordEmbedding
from showtell.models.linear import AlignedLinear
from showtell.models.positions import RealPositions
from showtell.models.recurrence import fold_lstm, run_lstm_on_words, step_lstm
from showtell.types import FeatureKind


class MergeDecoder(nn.Module):
    """A text branch and an image branch of equal width, added and read by a dense layer.

    The state of a row is (hidden (H), cell (H), image branch (H)).
    """

    feature_kind: FeatureKind = "pooled"

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        vector_width: int,
        embedding_width: int | None,
        hidden_size: int,
        image_dropout: float,
        word_dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = WordEmbedding(
            vocabulary_size=vocabulary_size, vector_width=vector_width, width=embedding_width
        )
        self.image_norm = nn.LayerNorm(feature_size)
        self.image_dropout = LockedDropout(image_dropout)
        self.image = nn.Linear(feature_size, hidden_size)
        self.word_dropout = LockedDropout(word_dropout)
        self.lstm = nn.LSTM(self.embedding.width, hidden_size, batch_first=True)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output_dropout = LockedDropout(output_dropout)
        self.output = AlignedLinear(hidden_size, vocabulary_size)

    def start(self, features: Tensor) -> State:
        """State: zeros (B, H), zeros (B, H), image branch (B, H), from pooled features (B, D)."""
        return self._begin(features)._replace(weights=fold_lstm(self.lstm, self.embedding))

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        hidden_NH, cell_NH, image_NH = state.rows
        words_NW = self.embedding.look_up(token_ids)
        hidden_NH, cell_NH = step_lstm(words_NW, hidden_NH, cell_NH, *state.weights)
        dense_NH = torch.relu(self.dense(hidden_NH + image_NH))
        logits_NV = self.output(self.output_dropout(dense_NH))
        return logits_NV, state._replace(rows=(hidden_NH, cell_NH, image_NH))

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        positions = RealPositions.of(lengths, tokens.device)
        _, _, image_NH = self._begin(features).select(image_of_row).rows
        words_PW = self.embedding.look_up(tokens[positions.rows, positions.times])
        words_PW = self.word_dropout(words_PW, positions)
        outputs_PH = run_lstm_on_words(self.lstm, self.embedding, words_PW, lengths, None)
        image_PH = image_NH.index_select(0, positions.rows)
        dense_PH = torch.relu(self.dense(outputs_PH + image_PH))
        logits_PV: Tensor = self.output(self.output_dropout(dense_PH, positions))
        return logits_PV

    def _begin(self, features: Tensor) -> State:
        image_BH = torch.relu(self.image(self.image_dropout(self.image_norm(features))))
        # In the features' dtype, because cells stay float32 where autocast computes in bfloat16.
        zeros_BH = features.new_zeros(image_BH.shape)
        return State((zeros_BH, zeros_BH, image_BH))
