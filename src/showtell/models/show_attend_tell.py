"""``show_attend_tell``: attention before each word, whose context the LSTM reads with the word.

The deterministic soft attention of Xu et al. 2015, "Show, Attend and Tell: Neural Image Caption
Generation with Visual Attention": the additive score, the gate beta on the context, and the deep
output. The doubly stochastic regularizer is left out: it belongs to the loss, not to the model. A
baseline, and slow: each word waits for the attention before it, and the additive score is expensive
(see ``RegionAttention``).

Dimension key: B images, N rows, T positions, P real positions, V vocabulary, D feature size,
R regions, A score size of the attention, E embedding, H hidden, G gates (4H).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from showtell.models.decoder import State
from showtell.models.dropout import LockedDropout
from showtell.models.embedding import WordEmbedding
from showtell.models.output import OutputLayer
from showtell.models.positions import PackedOrder, RealPositions
from showtell.models.recurrence import Rows, run_steps, update_cell
from showtell.models.regions import (
    AdditiveAttention,
    Look,
    RowsByImage,
    attend_beams,
    attend_recording,
    attend_rows,
)
from showtell.types import FeatureKind


class ShowAttendTellDecoder(nn.Module):
    """An LSTM that reads each word with the context its previous output attended to.

    The state is (hidden (H), cell (H), context (H)) per row, and the regions (R, H) and their
    attention keys (R, A) per image.
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
        score_size: int,
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
        width = self.embedding.width
        self.image_norm = nn.LayerNorm(feature_size)
        self.image_dropout = LockedDropout(image_dropout)
        self.region = nn.Linear(feature_size, hidden_size)
        self.initial = nn.Linear(hidden_size, 2 * hidden_size)
        self.word_dropout = LockedDropout(word_dropout)
        self.attention = AdditiveAttention(hidden_size, hidden_size, score_size)
        self.looking_gate = nn.Linear(hidden_size, 1)
        # The LSTM's gates, in two terms: of the word, and of the hidden state and the context.
        self.word_gates = nn.Linear(width, 4 * hidden_size)
        self.state_gates = nn.Linear(2 * hidden_size, 4 * hidden_size, bias=False)
        self.hidden_dense = nn.Linear(hidden_size, width)
        self.context_dense = nn.Linear(hidden_size, width, bias=False)
        self.output_dropout = LockedDropout(output_dropout)
        self.output = OutputLayer(width, self.embedding, tied=tied_output)

    def start(self, features: Tensor) -> State:
        """State: three (B, H), regions (B, R, H), their keys (B, R, A), from a grid (B, R, D)."""
        regions_BRH = torch.relu(self.region(self.image_dropout(self.image_norm(features))))
        hidden_BH, cell_BH = self.initial(regions_BRH.mean(dim=1)).chunk(2, dim=1)
        hidden_BH = torch.tanh(hidden_BH)
        # In the features' dtype, because cells stay float32 where autocast computes in bfloat16.
        rows = hidden_BH, cell_BH.to(features.dtype), torch.zeros_like(hidden_BH)
        return State(rows, (regions_BRH, self.attention.key(regions_BRH)))

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        look = attend_beams(self._attention(state), len(state.images[0]))
        words_NE = self.word_dropout(self.embedding(token_ids))
        rows = self._advance(look, self.word_gates(words_NE), state.rows)
        return self._score(words_NE, rows), state._replace(rows=rows)

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        positions = RealPositions.of(lengths, tokens.device)
        words_PE = self.embedding(tokens[positions.rows, positions.times])
        words_PE = self.word_dropout(words_PE, positions)
        start, order = self.start(features), PackedOrder.of(lengths, tokens.device)
        image_of_row = image_of_row[order.longest_first]
        look = attend_rows(self._attention(start), RowsByImage(image_of_row, len(features)))
        rows, advance = start.select(image_of_row).rows, partial(self._advance, look)
        states = run_steps(self.word_gates(words_PE), order, rows, advance)
        return self._score(words_PE, states, positions)

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (T, R) of one caption; see ``AttentiveDecoder.attend``."""
        state, weights = self.start(features.unsqueeze(0)), list[Tensor]()
        look, rows = attend_recording(self._attention(state), weights), state.rows
        for gates_1G in self.word_gates(self.embedding(token_ids)).split(1):
            rows = self._advance(look, gates_1G, rows)
        return torch.cat(weights)

    def _attention(self, state: State) -> partial[tuple[Tensor, Tensor]]:
        regions_BRH, keys_BRA = state.images
        return partial(self.attention, regions=regions_BRH, keys=keys_BRA)

    def _advance(self, look: Look, gates: Tensor, rows: Rows) -> Rows:
        """Equations 1 to 3 with the gate beta of section 4.2.1; ``gates`` (n, 4H) of the word."""
        hidden, cell, _ = rows
        seen = torch.sigmoid(self.looking_gate(hidden)) * look(hidden)
        gates = gates + self.state_gates(torch.cat([hidden, seen], dim=1))
        return *update_cell(gates, cell), seen

    def _score(self, words: Tensor, rows: Rows, positions: RealPositions | None = None) -> Tensor:
        """Logits (P, V) from words (P, E) and the states (P, H) after them: equation 7."""
        hidden, _, seen = rows
        dense = words + self.hidden_dense(hidden) + self.context_dense(seen)
        logits: Tensor = self.output(self.output_dropout(dense, positions), self.embedding)
        return logits
