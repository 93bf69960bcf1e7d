"""``adaptive_glove``: at each word, attention over the regions and a visual sentinel.

Lu, Xiong, Parikh and Socher 2017, "Knowing When to Look: Adaptive Attention via a Visual Sentinel
for Image Captioning". A word such as "of" needs no look at the picture, so attention also covers a
sentinel computed from the LSTM's memory; the weight of the sentinel tells how little the picture
counts. As in the paper the LSTM comes first and its output is the query, so that teacher forcing
computes attention as large matrix products over all words at once. Two things differ from the
paper, as in ``attention_glove``, from which this model differs only by the sentinel and the output:
the attention score is multiplicative (see ``RegionAttention``), and the picture sets the LSTM's
initial state instead of being read with every word.

Dimension key: B images, N rows, G rows of one image, Q queries of one image, T positions, P real
positions, V vocabulary, D feature size, R regions, W word-vector width, E embedding, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showtell.models.decoder import State
from showtell.models.dropout import LockedDropout
from showtell.models.embedding import WordEmbedding
from showtell.models.output import OutputLayer
from showtell.models.positions import RealPositions
from showtell.models.recurrence import fold_lstm, run_lstm_with_cells, step_lstm
from showtell.models.regions import RegionAttention, RowsByImage
from showtell.types import FeatureKind


class AdaptiveDecoder(nn.Module):
    """An LSTM whose output attends to the regions and to a sentinel of its memory.

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
        self.word_gate = nn.Linear(self.embedding.width, hidden_size)
        self.hidden_gate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.attention = RegionAttention(hidden_size, hidden_size)
        self.sentinel_key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.output_dropout = LockedDropout(output_dropout)
        self.output = OutputLayer(hidden_size, self.embedding, tied=tied_output)

    def start(self, features: Tensor) -> State:
        """State: hidden (B, H), cell (B, H) and regions (B, R, H), from a grid (B, R, D)."""
        return self._begin(features)._replace(weights=fold_lstm(self.lstm, self.embedding))

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        (regions_BRH,), (before_NH, cell_NH) = state.images, state.rows
        words_NW = self.embedding.look_up(token_ids)
        hidden_NH, cell_NH = step_lstm(words_NW, before_NH, cell_NH, *state.weights)
        words_NE = self.embedding.projection(words_NW)
        sentinel_NH = self._sentinel(words_NE, before_NH, cell_NH)
        shape = len(regions_BRH), -1, hidden_NH.shape[1]
        contexts_BGH, _ = self._look(hidden_NH.view(shape), sentinel_NH.view(shape), regions_BRH)
        known_NH = self.output_dropout(contexts_BGH.flatten(0, 1) + hidden_NH)
        logits_NV = self.output(known_NH, self.embedding)
        return logits_NV, state._replace(rows=(hidden_NH, cell_NH))

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        start, positions = self._begin(features), RealPositions.of(lengths, tokens.device)
        rows = start.select(image_of_row)
        hidden_PH, sentinel_PH = self._read(tokens, lengths, positions, rows)
        by_image = RowsByImage(image_of_row[positions.rows], len(features))
        grouped = by_image.group(hidden_PH), by_image.group(sentinel_PH)
        contexts_BQH, _ = self._look(*grouped, *start.images)
        known_PH = by_image.ungroup(contexts_BQH, len(hidden_PH)) + hidden_PH
        logits_PV: Tensor = self.output(self.output_dropout(known_PH, positions), self.embedding)
        return logits_PV

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (T, R) of one caption; see ``AttentiveDecoder.attend``.

        A row sums to 1 - beta, where beta is the sentinel's weight (equation 12).
        """
        start, lengths = self._begin(features.unsqueeze(0)), torch.tensor([len(token_ids)])
        positions = RealPositions.of(lengths, token_ids.device)
        hidden_TH, sentinel_TH = self._read(token_ids.unsqueeze(0), lengths, positions, start)
        asking = hidden_TH.unsqueeze(0), sentinel_TH.unsqueeze(0)
        _, weights_1TS = self._look(*asking, *start.images)
        return weights_1TS[0, :, :-1]

    def _begin(self, features: Tensor) -> State:
        regions_BRH = torch.relu(self.region(self.image_dropout(self.image_norm(features))))
        hidden_BH, cell_BH = self.initial(regions_BRH.mean(dim=1)).chunk(2, dim=1)
        # In the features' dtype, because cells stay float32 where autocast computes in bfloat16.
        return State((torch.tanh(hidden_BH), cell_BH.to(features.dtype)), (regions_BRH,))

    def _read(
        self, tokens: Tensor, lengths: Tensor, positions: RealPositions, start: State
    ) -> tuple[Tensor, Tensor]:
        """LSTM outputs and sentinels, each (P, H), at the real positions of ``tokens`` (N, T)."""
        first_NH, cell_NH = start.rows
        words_PE = self.embedding(tokens[positions.rows, positions.times])
        words_PE = self.word_dropout(words_PE, positions)
        hidden_PH, cell_PH = run_lstm_with_cells(self.lstm, words_PE, lengths, (first_NH, cell_NH))
        # h_{t-1} of a position: the output at the position before, or the row's initial state.
        before_P = torch.arange(len(words_PE), device=tokens.device) - 1 + len(first_NH)
        before_P = torch.where(positions.times == 0, positions.rows, before_P)
        before_PH = torch.cat([first_NH, hidden_PH]).index_select(0, before_P)
        return hidden_PH, self._sentinel(words_PE, before_PH, cell_PH)

    def _sentinel(self, words: Tensor, before: Tensor, cell: Tensor) -> Tensor:
        """The sentinel (P, H), the gated cell: equations 9 and 10; ``before`` is h_{t-1}."""
        gate = torch.sigmoid(self.word_gate(words) + self.hidden_gate(before))
        return gate * torch.tanh(cell)

    def _look(self, hidden: Tensor, sentinel: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (B, Q, H) and weights (B, Q, R + 1), the sentinel's last: equations 11 and 12.

        ``hidden`` are the queries and ``sentinel`` their sentinels, both (B, Q, H).
        """
        return self.attention.with_sentinel(hidden, regions, self.sentinel_key(sentinel), sentinel)
