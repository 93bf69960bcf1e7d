"""Decoders of seven tokens for the tests of searches, and every caption they can write."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from showtell.models.adaptive import AdaptiveDecoder
from showtell.models.attention import AttentionDecoder
from showtell.models.decoder import Decoder
from showtell.models.lstm import LSTMDecoder
from showtell.models.merge import MergeDecoder
from showtell.models.show_attend_tell import ShowAttendTellDecoder
from showtell.models.transformer import TransformerDecoder
from showtell.models.updown import UpDownDecoder
from showtell.text.vocabulary import BEGIN, UNKNOWN

VOCABULARY = 7
FEATURES = 5
REGIONS = 4
SIZES: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "feature_size": FEATURES,
    "vector_width": 4,
    "embedding_width": 3,
    "hidden_size": 6,
    "image_dropout": 0.0,
    "word_dropout": 0.0,
    "output_dropout": 0.0,
}
OUTPUT: dict[str, Any] = {"extend_vectors": False, "tied_output": False}

Words = tuple[int, ...]


def spread(decoder: Any, factor: float = 3.0) -> Any:
    """Untrained scores are nearly flat; spread them so that searches can go wrong."""
    for parameter in decoder.parameters():
        parameter.data.mul_(factor)
    return decoder.eval()


def lstm(seed: int) -> LSTMDecoder:
    torch.manual_seed(seed)
    decoder: LSTMDecoder = spread(LSTMDecoder(**SIZES, dense_size=6))
    return decoder


def merge(seed: int) -> MergeDecoder:
    torch.manual_seed(seed)
    decoder: MergeDecoder = spread(MergeDecoder(**SIZES))
    return decoder


def attention(seed: int) -> AttentionDecoder:
    torch.manual_seed(seed)
    decoder: AttentionDecoder = spread(AttentionDecoder(**SIZES, **OUTPUT, dense_size=6))
    return decoder


def updown(seed: int) -> UpDownDecoder:
    torch.manual_seed(seed)
    decoder: UpDownDecoder = spread(UpDownDecoder(**SIZES, **OUTPUT))
    return decoder


def adaptive(seed: int) -> AdaptiveDecoder:
    torch.manual_seed(seed)
    decoder: AdaptiveDecoder = spread(AdaptiveDecoder(**SIZES, **OUTPUT))
    return decoder


def show_attend_tell(seed: int) -> ShowAttendTellDecoder:
    torch.manual_seed(seed)
    options = {**SIZES, **OUTPUT, "score_size": 6}
    decoder: ShowAttendTellDecoder = spread(ShowAttendTellDecoder(**options))
    return decoder


def transformer(seed: int) -> TransformerDecoder:
    torch.manual_seed(seed)
    options = {**SIZES, **OUTPUT, "dense_size": 6, "layers": 2, "heads": 2}
    decoder: TransformerDecoder = spread(TransformerDecoder(**options), 2.0)
    return decoder


Make = Callable[[int], Any]
MODELS: tuple[Make, ...] = (
    *(lstm, merge, attention, updown),
    *(adaptive, show_attend_tell, transformer),
)


def pictures(decoder: Decoder, count: int) -> Tensor:
    """Made features of the kind the decoder reads."""
    shape = (count, FEATURES) if decoder.feature_kind == "pooled" else (count, REGIONS, FEATURES)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


def all_log_probs(decoder: Decoder, features: Tensor, longest: int) -> dict[Words, list[float]]:
    """The log probability of each next token after every caption of up to ``longest`` words.

    Of one image, ``features`` (1, ...). PAD, BEGIN and END are in no caption, UNKNOWN is.
    """
    found: dict[Words, list[float]] = {}
    prefixes: list[Words] = [()]
    state = decoder.start(features)
    words = [UNKNOWN, *range(UNKNOWN + 1, VOCABULARY)]
    for _ in range(longest + 1):
        last = torch.tensor([prefix[-1] if prefix else BEGIN for prefix in prefixes])
        scores, state = decoder.step(last, state)
        rows = torch.log_softmax(scores, dim=1).tolist()
        found |= dict(zip(prefixes, rows, strict=True))
        state = state.select(torch.arange(len(prefixes)).repeat_interleave(len(words)))
        prefixes = [(*prefix, word) for prefix, word in itertools.product(prefixes, words)]
    return found
