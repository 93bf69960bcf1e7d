"""``attention_glove``: at each word, soft attention over the regions of the photograph.

Xu et al. 2015, "Show, Attend and Tell", attend before each word and feed the context into the
LSTM. Here the LSTM's output is the query (as in Luong et al. 2015 and Lu et al. 2017, "Knowing When
to Look"). So the recurrence does not wait for attention, which in teacher forcing runs as large
matrix products over all words at once. The LSTM sees the picture in its initial state.

Dimension key: B images, N rows, G rows of one image, T positions, P real positions, V vocabulary,
D feature size, R regions, W word-vector width, E embedding, H hidden, M dense layer, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.models.decoder import State
from showtell.models.dropout import LockedDropout
from showtell.models.embedding import WordEmbedding
from showtell.models.output import OutputLayer
from showtell.models.positions import RealPositions
from showtell.models.recurrence import fast_tanh, fold_lstm, run_lstm, step_lstm
from showtell.models.regions import RegionAttention, RowsByImage
from showtell.types import FeatureKind


class AttentionDecoder(nn.Module):
    """An LSTM whose output attends to the regions, and a dense layer that reads both.

    The state is (hidden (H), cell (H)) per row and the regions (R, H) per image.
    """

    feature_kind: FeatureKind = "grid"

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        vector_width: int,
        embedding_width: int | None,
        extend_vectors: bool,
        tied_output: bool,
        hidden_size: int,
        dense_size: int,
        image_dropout: float,
        word_dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = WordEmbedding(
            vocabulary_size=vocabulary_size,
            vector_width=vector_width,
            width=embedding_width,
            extended=extend_vectors,
        )
        self.image_norm = nn.LayerNorm(feature_size)
        self.image_dropout = LockedDropout(image_dropout)
        self.region = nn.Linear(feature_size, hidden_size)
        self.initial = nn.Linear(hidden_size, 2 * hidden_size)
        self.word_dropout = LockedDropout(word_dropout)
        self.lstm = nn.LSTM(self.embedding.width, hidden_size, batch_first=True)
        self.attention = RegionAttention(hidden_size, hidden_size)
        self.hidden_dense = nn.Linear(hidden_size, dense_size)
        self.context_dense = nn.Linear(hidden_size, dense_size, bias=False)
        self.output_dropout = LockedDropout(output_dropout)
        self.output = OutputLayer(dense_size, self.embedding, tied=tied_output)

    def start(self, features: Tensor) -> State:
        """State: hidden (B, H), cell (B, H) and regions (B, R, H), from a grid (B, R, D)."""
        return self._begin(features)._replace(weights=fold_lstm(self.lstm, self.embedding))

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        (regions_BRH,) = state.images
        words_NW = self.embedding.look_up(token_ids)
        hidden_NH, cell_NH = step_lstm(words_NW, *state.rows, *state.weights)
        queries_BGH = hidden_NH.view(len(regions_BRH), -1, hidden_NH.shape[1])
        contexts_BGH, _ = self.attention(queries_BGH, regions_BRH)
        dense_NM = self._dense(hidden_NH, contexts_BGH.flatten(0, 1))
        logits_NV = self.output(dense_NM, self.embedding)
        return logits_NV, state._replace(rows=(hidden_NH, cell_NH))

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        start, positions = self._begin(features), RealPositions.of(lengths, tokens.device)
        outputs_PH = self._read(tokens, lengths, positions, start.select(image_of_row))
        by_image = RowsByImage(image_of_row[positions.rows], len(features))
        contexts_BQH, _ = self.attention(by_image.group(outputs_PH), *start.images)
        contexts_PH = by_image.ungroup(contexts_BQH, len(outputs_PH))
        logits_PV: Tensor = self.output(
            self._dense(outputs_PH, contexts_PH, positions), self.embedding
        )
        return logits_PV

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (T, R) of one caption; see ``AttentiveDecoder.attend``."""
        start = self._begin(features.unsqueeze(0))
        lengths = torch.tensor([len(token_ids)])
        positions = RealPositions.of(lengths, token_ids.device)
        outputs_TH = self._read(token_ids.unsqueeze(0), lengths, positions, start)
        _, weights_1TR = self.attention(outputs_TH.unsqueeze(0), *start.images)
        weights_TR: Tensor = weights_1TR[0]
        return weights_TR

    def _begin(self, features: Tensor) -> State:
        regions_BRH = torch.relu(self.region(self.image_dropout(self.image_norm(features))))
        hidden_BH, cell_BH = self.initial(regions_BRH.mean(dim=1)).chunk(2, dim=1)
        # In the features' dtype, because cells stay float32 where autocast computes in bfloat16.
        return State((torch.tanh(hidden_BH), cell_BH.to(features.dtype)), (regions_BRH,))

    def _read(
        self, tokens: Tensor, lengths: Tensor, positions: RealPositions, start: State
    ) -> Tensor:
        """LSTM outputs (P, H) at the real positions of ``tokens`` (N, T)."""
        hidden_NH, cell_NH = start.rows
        words_PE = self.embedding(tokens[positions.rows, positions.times])
        words_PE = self.word_dropout(words_PE, positions)
        return run_lstm(self.lstm, words_PE, lengths, (hidden_NH, cell_NH))

    def _dense(
        self, hidden: Tensor, context: Tensor, positions: RealPositions | None = None
    ) -> Tensor:
        """The attentional hidden state (P, M) of Luong et al. 2015, equation 5, with dropout."""
        dense = fast_tanh(self.hidden_dense(hidden) + self.context_dense(context))
        dropped: Tensor = self.output_dropout(dense, positions)
        return dropped
