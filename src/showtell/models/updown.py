"""``updown_glove``: an attention LSTM decides where to look, a language LSTM generates the words.

Anderson et al. 2018, "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question
Answering", over the regions of the image encoder's grid instead of detected objects. The attention
LSTM reads the mean region, the word and the language LSTM's state, and its output is the query; the
language LSTM reads the context. Each word waits for the one before it, so everything else is
computed outside the loop: the products with the words, the mean region and the regions. The
attention score is multiplicative (see ``RegionAttention``); the paper's is additive.

Dimension key: B images, N rows, n rows whose captions are unfinished, G gates (4H),
T positions, P real positions, V vocabulary, D feature size, R regions, E embedding, H hidden.
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
    Look,
    RegionAttention,
    RowsByImage,
    attend_beams,
    attend_recording,
    attend_rows,
)
from showtell.types import FeatureKind


class UpDownDecoder(nn.Module):
    """An attention LSTM and a language LSTM, with attention over the regions between them.

    The state is hidden and cell (H) of both LSTMs per row, and the regions (R, H) and their mean's
    term (4H) in the attention LSTM's gates per image.
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
        self.word_dropout = LockedDropout(word_dropout)
        # The attention LSTM's gates, in three terms: of the word, the image and the hidden states.
        self.word_gates = nn.Linear(self.embedding.width, 4 * hidden_size)
        self.image_gates = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.attention_gates = nn.Linear(2 * hidden_size, 4 * hidden_size, bias=False)
        self.attention = RegionAttention(hidden_size, hidden_size)
        self.language_gates = nn.Linear(3 * hidden_size, 4 * hidden_size)
        self.output_dropout = LockedDropout(output_dropout)
        self.output = OutputLayer(hidden_size, self.embedding, tied=tied_output)

    def start(self, features: Tensor) -> State:
        """State: four zeros (B, H), regions (B, R, H), gates (B, 4H), from a grid (B, R, D)."""
        regions_BRH = torch.relu(self.region(self.image_dropout(self.image_norm(features))))
        mean_BH = regions_BRH.mean(dim=1)
        # In the features' dtype, because cells stay float32 where autocast computes in bfloat16.
        zeros_BH = features.new_zeros(mean_BH.shape)
        return State((zeros_BH,) * 4, (regions_BRH, self.image_gates(mean_BH)))

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        regions_BRH, image_gates_BG = state.images
        images = len(regions_BRH)
        look = attend_beams(partial(self.attention, regions=regions_BRH), images)
        words_NE = self.word_dropout(self.embedding(token_ids))
        own_gates = image_gates_BG.repeat_interleave(len(token_ids) // images, dim=0)
        rows = self._advance(self.word_gates(words_NE) + own_gates, state.rows, look)
        logits_NV = self.output(self.output_dropout(rows[2]), self.embedding)
        return logits_NV, state._replace(rows=rows)

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        positions = RealPositions.of(lengths, tokens.device)
        words_PE = self.embedding(tokens[positions.rows, positions.times])
        words_PE = self.word_dropout(words_PE, positions)
        outputs_PH = self._read(words_PE, lengths, image_of_row, self.start(features))
        logits_PV: Tensor = self.output(self.output_dropout(outputs_PH, positions), self.embedding)
        return logits_PV

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (T, R) of one caption; see ``AttentiveDecoder.attend``."""
        state, weights = self.start(features.unsqueeze(0)), list[Tensor]()
        regions_1RH, image_gates_1G = state.images
        look = attend_recording(partial(self.attention, regions=regions_1RH), weights)
        rows = state.rows
        for gates_1G in self.word_gates(self.embedding(token_ids)).split(1):
            rows = self._advance(gates_1G + image_gates_1G, rows, look)
        return torch.cat(weights)

    def _advance(
        self, gates: Tensor, rows: Rows, look: Look
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advance both LSTMs; ``gates`` (n, 4H): word and image terms of the attention LSTM."""
        asking, asking_cell, saying, saying_cell = rows
        gates = gates + self.attention_gates(torch.cat([asking, saying], dim=1))
        asking, asking_cell = update_cell(gates, asking_cell)
        gates = self.language_gates(torch.cat([look(asking), asking, saying], dim=1))
        saying, saying_cell = update_cell(gates, saying_cell)
        return asking, asking_cell, saying, saying_cell

    def _read(self, words: Tensor, lengths: Tensor, image_of_row: Tensor, start: State) -> Tensor:
        """Outputs (P, H) of the language LSTM after each of ``words`` (P, E), row by row."""
        # Longest rows first, so that the unfinished ones are always the first n.
        order = PackedOrder.of(lengths, words.device)
        image_of_row = image_of_row[order.longest_first]
        regions_BRH, image_gates_BG = start.images
        by_image = RowsByImage(image_of_row, len(regions_BRH))
        look = attend_rows(partial(self.attention, regions=regions_BRH), by_image)
        own_gates = image_gates_BG[image_of_row]

        def advance(gates: Tensor, rows: Rows) -> Rows:
            return self._advance(gates + own_gates[: len(gates)], rows, look)

        rows = start.select(image_of_row).rows
        return run_steps(self.word_gates(words), order, rows, advance)[2]
