"""``lstm_glove``: the image sets the LSTM's initial state and joins its output before the softmax.

Vinyals et al. 2015, "Show and Tell", feed the image to the LSTM once, at the start; here it sets
the initial state (init-inject in Tanti et al. 2018). A dense layer then combines the LSTM's output
with the image, so that the LSTM need not remember the image for late words.

Dimension key: B images, N rows, T positions, P real positions, V vocabulary, D feature size,
W word-vector width, E embedding, H hidden, M dense layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.models.decoder import State
from showtell.models.dropout import LockedDropout
from showtell.models.embedding import WordEmbedding
from showtell.models.linear import AlignedLinear
from showtell.models.positions import RealPositions
from showtell.models.recurrence import (
    fast_tanh,
    fold_lstm,
    run_lstm_on_words,
    step_lstm,
)
from showtell.types import FeatureKind


class LSTMDecoder(nn.Module):
    """An LSTM over word embeddings whose initial state is a projection of the image.

    The state of a row is (hidden (H), cell (H), the image's term in the dense layer (M)).
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
        dense_size: int,
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
        self.initial = nn.Linear(feature_size, 2 * hidden_size)
        self.image_dense = nn.Linear(feature_size, dense_size, bias=False)
        self.word_dropout = LockedDropout(word_dropout)
        self.lstm = nn.LSTM(self.embedding.width, hidden_size, batch_first=True)
        self.hidden_dense = nn.Linear(hidden_size, dense_size)
        self.output_dropout = LockedDropout(output_dropout)
        self.output = AlignedLinear(dense_size, vocabulary_size)

    def start(self, features: Tensor) -> State:
        """State: hidden (B, H), cell (B, H), image term (B, M), from pooled features (B, D)."""
        return self._begin(features)._replace(weights=fold_lstm(self.lstm, self.embedding))

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        hidden_NH, cell_NH, image_NM = state.rows
        words_NW = self.embedding.look_up(token_ids)
        hidden_NH, cell_NH = step_lstm(words_NW, hidden_NH, cell_NH, *state.weights)
        dense_NM = fast_tanh(self.hidden_dense(hidden_NH) + image_NM)
        logits_NV = self.output(self.output_dropout(dense_NM))
        return logits_NV, state._replace(rows=(hidden_NH, cell_NH, image_NM))

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        positions = RealPositions.of(lengths, tokens.device)
        hidden_NH, cell_NH, image_NM = self._begin(features).select(image_of_row).rows
        words_PW = self.embedding.look_up(tokens[positions.rows, positions.times])
        outputs_PH = run_lstm_on_words(
            self.lstm,
            self.embedding,
            self.word_dropout(words_PW, positions),
            lengths,
            (hidden_NH, cell_NH),
        )
        image_PM = image_NM.index_select(0, positions.rows)
        dense_PM = torch.tanh(self.hidden_dense(outputs_PH) + image_PM)
        logits_PV: Tensor = self.output(self.output_dropout(dense_PM, positions))
        return logits_PV

    def _begin(self, features: Tensor) -> State:
        image_BD = self.image_dropout(self.image_norm(features))
        hidden_BH, cell_BH = self.initial(image_BD).chunk(2, dim=1)
        # In the features' dtype, because cells stay float32 where autocast computes in bfloat16.
        cell_BH = cell_BH.to(features.dtype)
        return State((torch.tanh(hidden_BH), cell_BH, self.image_dense(image_BD)))
