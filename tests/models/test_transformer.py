"""The Transformer decoder against PyTorch's, with the same weights, and its memory of words."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from showtell.decoding.beam import BeamSearch
from showtell.models.transformer import TransformerDecoder, multi_head_attention, sinusoids
from showtell.text.vocabulary import BEGIN, PAD

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from plain_training import PyTorchTransformer

V, D, R, H, HEADS, LAYERS = 11, 6, 4, 8, 2, 3


def transformer(**changes: float) -> TransformerDecoder:
    torch.manual_seed(0)
    sizes: dict[str, int] = {"hidden_size": H, "dense_size": 12, "layers": LAYERS, "heads": HEADS}
    dropout = {"image_dropout": 0.0, "word_dropout": 0.0, "output_dropout": 0.0}
    more = {"extend_vectors": True, "tied_output": False, "embedding_width": 7}
    given = {"vocabulary_size": V, "feature_size": D, "vector_width": 5}
    decoder = TransformerDecoder(**given | sizes | dropout | more | changes)  # type: ignore[arg-type]
    # Untrained attention is nearly even; larger weights make it choose.
    for parameter in decoder.parameters():
        parameter.data.mul_(1.5)
    return decoder.eval()


def place(time: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, number by number."""
    angles = [time / 10000 ** (2 * (i // 2) / H) for i in range(H)]
    return torch.tensor([(math.sin, math.cos)[i % 2](a) for i, a in enumerate(angles)])


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_pytorchs_decoder(tied: bool) -> None:
    decoder = transformer(tied_output=tied)
    theirs = PyTorchTransformer(decoder, label_smoothing=0.0).eval()
    torch.manual_seed(1)
    images, lengths = torch.randn(2, R, D), torch.tensor([5, 3, 4])
    tokens = torch.randint(4, V, (3, 5))
    tokens[:, 0] = BEGIN
    padding = torch.arange(5) >= lengths.unsqueeze(1)
    tokens[padding] = PAD
    image_of_row = torch.tensor([1, 0, 1])
    expected = theirs.score(images[image_of_row], tokens)[~padding]
    found = decoder(images, tokens, lengths, image_of_row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        if not name.startswith("layers."):
            own = theirs.around.get_parameter(name).grad
            torch.testing.assert_close(parameter.grad, own, atol=1e-4, rtol=1e-4)
    for ours, layer in zip(decoder.layers, theirs.decoder.layers, strict=True):
        asks = ours.word_asks.weight.grad  # type: ignore[union-attr]
        their_asks = layer.self_attn.in_proj_weight.grad  # type: ignore[union-attr]
        torch.testing.assert_close(asks, their_asks, atol=1e-4, rtol=1e-4)


def test_gradients_are_the_numerical_ones() -> None:
    decoder = transformer().double()
    torch.manual_seed(1)
    images = torch.randn(2, R, D, dtype=torch.double, requires_grad=True)
    tokens, lengths = torch.tensor([[BEGIN, 4, 5], [BEGIN, 6, PAD]]), torch.tensor([3, 2])

    def scores(images: Tensor) -> Tensor:
        found: Tensor = decoder(images, tokens, lengths, torch.tensor([1, 0]))
        return found

    assert torch.autograd.gradcheck(scores, (images,), atol=1e-4)


@torch.no_grad()
def test_a_query_finds_the_softmax_of_each_head() -> None:
    torch.manual_seed(0)
    queries, memory = torch.randn(1, 3, H), torch.randn(1, 3, 2 * H)
    found, width = multi_head_attention(queries, memory, HEADS, causal=True)[0], H // HEADS
    for q in range(3):
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            keys, values = memory[0, : q + 1, :H][:, part], memory[0, : q + 1, H:][:, part]
            heard = torch.exp(keys @ queries[0, q, part] / math.sqrt(width))
            torch.testing.assert_close(found[q, part], heard / heard.sum() @ values)


def test_positions_are_told_apart_by_sines_and_cosines() -> None:
    expected = torch.stack([place(time) for time in range(40)])
    torch.testing.assert_close(sinusoids(40, H, torch.device("cpu")), expected)


@torch.inference_mode()
def test_the_memory_grows_by_a_word_and_the_image_is_read_once() -> None:
    decoder, images = transformer(), torch.randn(2, R, D)
    state = decoder.start(images)
    assert [tuple(memory.shape) for memory in state.images] == [(2, R, 2 * H)] * LAYERS
    for words in range(3):
        assert [tuple(memory.shape) for memory in state.rows] == [(2, words, 2 * H)] * LAYERS
        _, after = decoder.step(torch.tensor([4, 5]), state)
        assert all(a is b for a, b in zip(after.images, state.images, strict=True))
        state = after


def test_no_caption_is_too_long() -> None:
    decoder, search = transformer(), BeamSearch(2, 60, 60, 0.0, allow_unknown=False)
    assert len(search(decoder, torch.randn(1, R, D))[0].token_ids) == 60


def test_heads_share_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size=8 must be even and a multiple of heads=3"):
        transformer(heads=3)
