"""Models trained as they are commonly written: baselines for the training benchmark.

``lstm_glove`` has two of them, the Transformer has PyTorch's layers, and every model has a loop
over its single steps. All repeat an image's features for every caption or prefix, pad to a common
length and compute the padding too. Their losses equal the model's own (tests/benchmarks/
test_plain_training.py).

Dimension key: B images, N captions, S prefixes, T positions, V vocabulary, D feature size,
R regions, E embedding, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from showtell.data.batches import Batch
from showtell.models.decoder import Decoder
from showtell.models.lstm import LSTMDecoder
from showtell.models.transformer import TransformerDecoder, TransformerLayer, sinusoids
from showtell.text.vocabulary import PAD


@dataclass(frozen=True)
class PaddedCaptions:
    """A mini-batch as a loader of (image, caption) pairs gives it."""

    features: Tensor  # (N, D) or (N, R, D)
    tokens: Tensor  # (N, T) BEGIN and the words
    targets: Tensor  # (N, T) the words and END

    @property
    def useful(self) -> int:
        """Number of tokens to predict that are not padding."""
        return int((self.targets != PAD).sum())


@dataclass(frozen=True)
class Prefixes:
    """Prefixes of captions, each with the word that follows."""

    features: Tensor  # (S, D)
    tokens: Tensor  # (S, T) padded to the longest caption there is
    lengths: Tensor  # (S,)
    targets: Tensor  # (S,)


def pad_captions(batch: Batch) -> PaddedCaptions:
    """The captions of a batch, padded, each with its own copy of its image's features."""
    targets = pad_sequence(
        list(batch.targets.split(batch.lengths.tolist())), batch_first=True, padding_value=PAD
    )
    return PaddedCaptions(batch.features[batch.image_of_row], batch.tokens, targets)


def cut_prefixes(captions: PaddedCaptions, *, width: int) -> Prefixes:
    """All prefixes of all captions, padded to ``width``."""
    rows, times = torch.nonzero(captions.targets != PAD, as_tuple=True)
    kept = torch.arange(width, device=times.device) <= times.unsqueeze(1)
    tokens = F.pad(captions.tokens, (0, width - captions.tokens.shape[1]), value=PAD)[rows]
    return Prefixes(
        captions.features[rows],
        tokens.masked_fill(~kept, PAD),
        times + 1,
        captions.targets[rows, times],
    )


def take(prefixes: Prefixes, rows: Sequence[int] | Tensor) -> Prefixes:
    """The prefixes in the given rows."""
    chosen = torch.as_tensor(rows, device=prefixes.tokens.device)
    return Prefixes(
        prefixes.features[chosen],
        prefixes.tokens[chosen],
        prefixes.lengths[chosen],
        prefixes.targets[chosen],
    )


def loss_of(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of logits (., V) and targets (.), ignoring padding."""
    return F.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=label_smoothing)


class StepLoop(nn.Module):
    """A decoder's single steps, word by word over padded captions, each with its own features."""

    def __init__(self, decoder: Decoder, *, label_smoothing: float) -> None:
        super().__init__()
        self.layers = deepcopy(cast(nn.Module, decoder))
        self.label_smoothing = label_smoothing

    def forward(self, captions: PaddedCaptions) -> Tensor:
        """The loss."""
        decoder, logits = cast(Decoder, self.layers), []
        state = decoder.start(captions.features)
        for tokens_N in captions.tokens.unbind(1):
            logits_NV, state = decoder.step(tokens_N, state)
            logits.append(logits_NV)
        logits_NTV = torch.stack(logits, dim=1)
        return loss_of(logits_NTV.flatten(0, 1), captions.targets.flatten(), self.label_smoothing)


class PyTorchTransformer(nn.Module):
    """``nn.TransformerDecoder`` over padded captions, each with its own features."""

    def __init__(self, decoder: TransformerDecoder, *, label_smoothing: float) -> None:
        super().__init__()
        self.around = deepcopy(decoder)  # what comes before and after the layers
        self.around.layers = nn.ModuleList()
        ours = [cast(TransformerLayer, layer) for layer in decoder.layers]
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(2, 1), 0)
        self.decoder.layers = nn.ModuleList(pytorch_layer(layer, decoder.heads) for layer in ours)
        self.image_dropout = nn.Dropout(decoder.image_dropout.rate)
        self.word_dropout = nn.Dropout(decoder.word_dropout.rate)
        self.label_smoothing = label_smoothing

    def forward(self, captions: PaddedCaptions) -> Tensor:
        """The loss."""
        logits_NTV = self.score(captions.features, captions.tokens)
        return loss_of(logits_NTV.flatten(0, 1), captions.targets.flatten(), self.label_smoothing)

    def score(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Scores (N, T, V) of features (N, R, D) and tokens (N, T)."""
        around, length = self.around, tokens.shape[1]
        regions_NRH = torch.relu(around.region(self.image_dropout(around.image_norm(features))))
        words_NTH = around.word(around.embedding(tokens))
        width = words_NTH.shape[2]
        words_NTH = words_NTH * math.sqrt(width) + sinusoids(length, width, tokens.device)
        read_NTH = self.decoder(
            self.word_dropout(words_NTH),
            regions_NRH,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(length, tokens.device),
            tgt_is_causal=True,
        )
        table = around.embedding.table()
        projected = around.output.projection(around.norm(read_NTH).flatten(0, 1))
        logits = F.linear(projected, table, around.output.bias) if around.output.tied else projected
        return logits.unflatten(0, tokens.shape)


def pytorch_layer(layer: TransformerLayer, heads: int) -> nn.TransformerDecoderLayer:
    """PyTorch's layer with the weights and the dropout rate of ours."""
    asks, memory = layer.image_asks, layer.image_memory
    dense_size, width = layer.dense.weight.shape
    rate = layer.dropout.rate
    theirs = nn.TransformerDecoderLayer(
        width, heads, dense_size, rate, batch_first=True, norm_first=True
    )
    parts = {
        "self_attn.in_proj_": layer.word_asks.state_dict(),
        "self_attn.out_proj.": layer.word_found.state_dict(),
        "multihead_attn.in_proj_": {
            "weight": torch.cat([asks.weight, memory.weight]),
            "bias": torch.cat([asks.bias, memory.bias]),
        },
        "multihead_attn.out_proj.": layer.image_found.state_dict(),
        "linear1.": layer.dense.state_dict(),
        "linear2.": layer.dense_out.state_dict(),
        "norm1.": layer.word_norm.state_dict(),
        "norm2.": layer.image_norm.state_dict(),
        "norm3.": layer.dense_norm.state_dict(),
    }
    theirs.load_state_dict({p + n: w for p, state in parts.items() for n, w in state.items()})
    return theirs


class PlainDecoder(nn.Module):
    """The layers of ``lstm_glove`` around a recurrence, with PyTorch's own dropout."""

    def __init__(self, decoder: LSTMDecoder, *, label_smoothing: float) -> None:
        super().__init__()
        self.layers = deepcopy(decoder)  # holds the weights; its forward is not used
        self.image_dropout = nn.Dropout(decoder.image_dropout.rate)
        self.word_dropout = nn.Dropout(decoder.word_dropout.rate)
        self.output_dropout = nn.Dropout(decoder.output_dropout.rate)
        self.label_smoothing = label_smoothing

    def start(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden and cell state (., H) and the image part of the dense layer (., M)."""
        image = self.image_dropout(self.layers.image_norm(features))
        hidden, cell = self.layers.initial(image).chunk(2, dim=1)
        # cuDNN's LSTM takes no state with gaps.
        return torch.tanh(hidden), cell.contiguous(), self.layers.image_dense(image)

    def score(self, hidden: Tensor, image: Tensor) -> Tensor:
        """Scores (., V) from the LSTM's output (., H) and the image (., M)."""
        dense = self.output_dropout(torch.tanh(self.layers.hidden_dense(hidden) + image))
        return F.linear(dense, self.layers.output.weight, self.layers.output.bias)

    def compare(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss per real target."""
        return loss_of(logits, targets, self.label_smoothing)


class CellLoop(PlainDecoder):
    """An LSTM cell called word by word over padded captions."""

    def __init__(self, decoder: LSTMDecoder, *, label_smoothing: float) -> None:
        super().__init__(decoder, label_smoothing=label_smoothing)
        self.cell = nn.LSTMCell(decoder.lstm.input_size, decoder.lstm.hidden_size)
        weights = decoder.lstm.state_dict().items()
        self.cell.load_state_dict({name.removesuffix("_l0"): w for name, w in weights})
        del self.layers.lstm

    def forward(self, captions: PaddedCaptions) -> Tensor:
        """The loss."""
        hidden, cell, image_NM = self.start(captions.features)
        words_NTE = self.word_dropout(self.layers.embedding(captions.tokens))
        outputs = []
        for words_NE in words_NTE.unbind(1):
            hidden, cell = self.cell(words_NE, (hidden, cell))
            outputs.append(hidden)
        logits_NTV = self.score(torch.stack(outputs, dim=1), image_NM.unsqueeze(1))
        return self.compare(logits_NTV.flatten(0, 1), captions.targets.flatten())


class PrefixLoop(PlainDecoder):
    """A sample per prefix of each caption; only the last LSTM output of each is used."""

    def forward(self, prefixes: Prefixes) -> Tensor:
        """The loss."""
        hidden, cell, image_SM = self.start(prefixes.features)
        words_STE = self.word_dropout(self.layers.embedding(prefixes.tokens))
        outputs_STH, _ = self.layers.lstm(words_STE, (hidden.unsqueeze(0), cell.unsqueeze(0)))
        last_SH = outputs_STH[torch.arange(len(outputs_STH)), prefixes.lengths - 1]
        return self.compare(self.score(last_SH, image_SM), prefixes.targets)
