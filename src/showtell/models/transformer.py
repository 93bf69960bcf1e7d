"""``transformer_glove``: a Transformer decoder with cross-attention to the regions of the image.

The decoder of Vaswani et al. 2017, "Attention Is All You Need", with pre-layer normalization (Xiong
et al. 2020, "On Layer Normalization in the Transformer Architecture"), which trains without a long
warm-up. Cross-attention reads the regions of the image encoder's grid. In teacher forcing all
layers run over all real positions of all captions at once; only self-attention works on padded
captions.

Dimension key: B images, N rows, G rows of one image, T positions, P real positions, V vocabulary,
D feature size, R regions, E embedding, H hidden, M = 2H (keys and values, called memory), S memory
length, Q queries, X = 3H (queries, keys and values).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.models.decoder import State
from showtell.models.dropout import LockedDropout
from showtell.models.embedding import WordEmbedding
from showtell.models.output import OutputLayer
from showtell.models.positions import RealPositions
from showtell.models.regions import RowsByImage
from showtell.types import FeatureKind

# Self-attention: queries, keys and values (P, 3H) -> contexts (P, H) over the words so far.
Recall = Callable[[Tensor], Tensor]
# Cross-attention: memory (B, R, M) of the images and queries (P, H) -> contexts (P, H).
Look = Callable[[Tensor, Tensor], Tensor]


class TransformerDecoder(nn.Module):
    """Layers of self-attention, cross-attention to the regions, and a feed-forward network.

    The state is a key-value cache: for each layer, keys and values of the words so far (S, M) per
    row and of the regions (R, M) per image.

    Raises:
        ValueError: the hidden size is odd or not a multiple of the number of heads.
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
        layers: int,
        heads: int,
        image_dropout: float,
        word_dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        if hidden_size % heads or hidden_size % 2:
            raise ValueError(f"hidden_size={hidden_size} must be even and a multiple of {heads=}")
        self.embedding = WordEmbedding(
            vocabulary_size=vocabulary_size,
            vector_width=vector_width,
            width=embedding_width,
            extended=extend_vectors,
        )
        self.image_norm = nn.LayerNorm(feature_size)
        self.image_dropout = LockedDropout(image_dropout)
        self.region = nn.Linear(feature_size, hidden_size)
        self.word = nn.Linear(self.embedding.width, hidden_size)
        self.word_dropout = LockedDropout(word_dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_size, dense_size, dropout=output_dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.output = OutputLayer(hidden_size, self.embedding, tied=tied_output)
        self.heads = heads

    def start(self, features: Tensor) -> State:
        """State: empty memories (B, 0, M) and the regions' (B, R, M), from a grid (B, R, D)."""
        regions_BRH = torch.relu(self.region(self.image_dropout(self.image_norm(features))))
        layers = cast(Iterable[TransformerLayer], self.layers)
        images = tuple(layer.image_memory(regions_BRH) for layer in layers)
        return State(tuple(image[:, :0] for image in images), images)

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the next word after reading ``token_ids`` (N,)."""
        memories, time = [], state.rows[0].shape[1]
        times_N = torch.full_like(token_ids, time)
        words_NH = self._place(token_ids, times_N, longest=time + 1)

        def recall(remembered_NSM: Tensor, words_NX: Tensor) -> Tensor:
            queries_N1H, own_N1M = _split(words_NX.unsqueeze(1))
            memories.append(torch.cat([remembered_NSM, own_N1M], dim=1))
            return multi_head_attention(queries_N1H, memories[-1], self.heads).squeeze(1)

        def look(memory_BRM: Tensor, queries_NH: Tensor) -> Tensor:
            queries_BGH = queries_NH.view(len(memory_BRM), -1, queries_NH.shape[1])
            return multi_head_attention(queries_BGH, memory_BRM, self.heads).flatten(0, 1)

        words_NH = self.word_dropout(words_NH)
        for layer, remembered, image in zip(self.layers, state.rows, state.images, strict=True):
            words_NH = layer(words_NH, partial(recall, remembered), partial(look, image))
        logits_NV: Tensor = self.output(self.norm(words_NH), self.embedding)
        return logits_NV, state._replace(rows=tuple(memories))

    def forward(
        self, features: Tensor, tokens: Tensor, lengths: Tensor, image_of_row: Tensor
    ) -> Tensor:
        """Teacher forcing: logits (P, V); see ``Decoder.__call__``."""
        positions = RealPositions.of(lengths, tokens.device)
        by_image = RowsByImage(image_of_row[positions.rows], len(features))

        def look(memory_BRM: Tensor, queries_PH: Tensor) -> Tensor:
            contexts_BQH = multi_head_attention(by_image.group(queries_PH), memory_BRM, self.heads)
            return by_image.ungroup(contexts_BQH, len(queries_PH))

        words_PH = self._read(tokens, positions, self.start(features).images, look)
        logits_PV: Tensor = self.output(words_PH, self.embedding)
        return logits_PV

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (T, R) of one caption: the mean over the last layer's heads.

        See ``AttentiveDecoder.attend``.
        """
        positions = RealPositions.of(torch.tensor([len(token_ids)]), token_ids.device)
        weights = []

        def look(memory_1RM: Tensor, queries_TH: Tensor) -> Tensor:
            weights.append(attention_weights(queries_TH.unsqueeze(0), memory_1RM, self.heads))
            return multi_head_attention(queries_TH.unsqueeze(0), memory_1RM, self.heads).squeeze(0)

        images = self.start(features.unsqueeze(0)).images
        self._read(token_ids.unsqueeze(0), positions, images, look)
        return weights[-1].mean(dim=1).squeeze(0)

    def _read(
        self, tokens: Tensor, positions: RealPositions, images: tuple[Tensor, ...], look: Look
    ) -> Tensor:
        """Outputs (P, H) of the last layer at the real positions of ``tokens`` (N, T)."""
        by_row = RowsByImage(positions.rows, positions.row_count)

        def recall(words_PX: Tensor) -> Tensor:
            # Padding follows the words, so the causal mask hides it from them.
            queries_NTH, memory_NTM = _split(by_row.group(words_PX))
            found_NTH = multi_head_attention(queries_NTH, memory_NTM, self.heads, causal=True)
            return by_row.ungroup(found_NTH, len(words_PX))

        token_ids = tokens[positions.rows, positions.times]
        words_PH = self._place(token_ids, positions.times, longest=tokens.shape[1])
        words_PH = self.word_dropout(words_PH, positions)
        for layer, memory in zip(self.layers, images, strict=True):
            words_PH = layer(words_PH, recall, partial(look, memory), positions)
        read_PH: Tensor = self.norm(words_PH)
        return read_PH

    def _place(self, token_ids: Tensor, times: Tensor, *, longest: int) -> Tensor:
        """Word plus positional embeddings (P, H): Vaswani et al. 2017, sections 3.4 and 3.5."""
        words_PH = self.word(self.embedding(token_ids))
        width = words_PH.shape[1]
        places_TH = sinusoids(longest, width, words_PH.device).to(words_PH.dtype)
        placed_PH: Tensor = words_PH * math.sqrt(width) + places_TH.index_select(0, times)
        return placed_PH


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normalized and residual."""

    def __init__(self, width: int, dense_size: int, *, dropout: float) -> None:
        super().__init__()
        self.word_norm = nn.LayerNorm(width)
        self.word_asks = nn.Linear(width, 3 * width)  # queries, keys, values
        self.word_found = nn.Linear(width, width)
        self.image_norm = nn.LayerNorm(width)
        self.image_asks = nn.Linear(width, width)
        self.image_memory = nn.Linear(width, 2 * width)  # keys, values
        self.image_found = nn.Linear(width, width)
        self.dense_norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, dense_size)
        self.dense_out = nn.Linear(dense_size, width)
        self.dropout = LockedDropout(dropout)

    def forward(
        self,
        words: Tensor,
        recall: Recall,
        look: Callable[[Tensor], Tensor],
        positions: RealPositions | None = None,
    ) -> Tensor:
        """Words (P, H) -> (P, H); the caller provides both attentions and their memories."""
        found = self.word_found(recall(self.word_asks(self.word_norm(words))))
        words = words + self.dropout(found, positions)
        seen = self.image_found(look(self.image_asks(self.image_norm(words))))
        words = words + self.dropout(seen, positions)
        dense = self.dense_out(torch.relu(self.dense(self.dense_norm(words))))
        added: Tensor = words + self.dropout(dense, positions)
        return added


def multi_head_attention(
    queries: Tensor, memory: Tensor, heads: int, *, causal: bool = False
) -> Tensor:
    """Multi-head attention of queries (B, Q, H) over a memory (B, S, M): contexts (B, Q, H).

    If ``causal``, query q sees the first q + 1 entries of the memory.
    """
    keys, values = _by_head(memory, 2 * heads).chunk(2, dim=1)
    found = F.scaled_dot_product_attention(_by_head(queries, heads), keys, values, is_causal=causal)
    return found.transpose(1, 2).flatten(2)


def attention_weights(queries: Tensor, memory: Tensor, heads: int) -> Tensor:
    """The weights of ``multi_head_attention``, not causal: (B, heads, Q, S), rows sum to 1."""
    keys, _ = _by_head(memory, 2 * heads).chunk(2, dim=1)
    asked = _by_head(queries, heads)
    return torch.softmax(asked @ keys.transpose(2, 3) / math.sqrt(asked.shape[-1]), dim=-1)


def _split(words: Tensor) -> tuple[Tensor, Tensor]:
    """Split words (N, T, 3H) into queries (N, T, H) and memory (N, T, M)."""
    width = words.shape[-1] // 3
    return words[..., :width], words[..., width:]


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    """(B, S, heads * d) as (B, heads, S, d)."""
    count, length, _ = tensor.shape
    return tensor.view(count, length, heads, -1).transpose(1, 2)


def sinusoids(count: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal position embeddings (count, width): Vaswani et al. 2017, section 3.5.

    Nothing is learned, so captions may have any length. ``width`` must be even.
    """
    times_T1 = torch.arange(count, device=device).unsqueeze(1)
    steps = torch.arange(0, width, 2, device=device) / width
    angles = times_T1 * torch.exp(-math.log(10000.0) * steps)
    return torch.stack([torch.sin(angles), torch.cos(angles)], dim=2).flatten(1)
