"""One image at a time writes what the batched search writes, so the two may be compared in time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from showtell.decoding.beam import BeamSearch
from showtell.models.attention import AttentionDecoder
from showtell.models.lstm import LSTMDecoder
from showtell.text.vocabulary import END, UNKNOWN

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from plain_decoding import search_one_image

SIZES: dict[str, Any] = {
    "vocabulary_size": 12,
    "feature_size": 5,
    "vector_width": 4,
    "embedding_width": 6,
    "hidden_size": 8,
    "dense_size": 8,
    "image_dropout": 0.0,
    "word_dropout": 0.0,
    "output_dropout": 0.0,
}


def made(model: type[Any], options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    decoder = model(**SIZES, **options).eval()
    for parameter in decoder.parameters():
        parameter.data.mul_(3.0)
    decoder.output.bias.data[END] += 2.0  # captions of several lengths
    return decoder


@pytest.mark.parametrize("beam_size", [1, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@torch.inference_mode()
def test_one_image_at_a_time_writes_the_same_captions(
    beam_size: int, length_penalty: float
) -> None:
    grid = {"extend_vectors": True, "tied_output": True}
    for model, options, shape in ((LSTMDecoder, {}, (9, 5)), (AttentionDecoder, grid, (9, 4, 5))):
        decoder = made(model, options)
        features = torch.randn(shape)
        search = BeamSearch(
            beam_size=beam_size,
            min_length=1,
            max_length=9,
            length_penalty=length_penalty,
            allow_unknown=False,
        )
        captions = [search_one_image(decoder, one.unsqueeze(0), search) for one in features]
        assert captions == [h.token_ids for h in search(decoder, features)]
        assert len({len(caption) for caption in captions}) > 1
        assert not {END, UNKNOWN} & {word for caption in captions for word in caption}
