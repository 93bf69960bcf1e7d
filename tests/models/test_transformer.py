"""The Transformer decoder against PyTorch's, with the same weights, and its memory of words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from showtell.decoding.beam import BeamSearch
from showtell.models.transformer import TransformerDecoder, TransformerLayer, mix, sinusoids
from showtell.text.vocabulary import BEGIN, PAD

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


def pytorch_layer(layer: TransformerLayer) -> nn.TransformerDecoderLayer:
    """PyTorch's layer with the weights of ours."""
    theirs = nn.TransformerDecoderLayer(H, HEADS, 12, batch_first=True, norm_first=True)
    memory, asks = layer.image_memory, layer.image_asks
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


def pytorch_decoder(decoder: TransformerDecoder) -> nn.TransformerDecoder:
    """PyTorch's layers with the weights of ours."""
    theirs = nn.TransformerDecoder(nn.TransformerDecoderLayer(H, HEADS, 12), LAYERS, decoder.norm)
    theirs.layers = nn.ModuleList(pytorch_layer(layer) for layer in decoder.layers)  # type: ignore[arg-type]
    return theirs.eval()


def place(time: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, number by number."""
    angles = [time / 10000 ** (2 * (i // 2) / H) for i in range(H)]
    return torch.tensor([(math.sin, math.cos)[i % 2](a) for i, a in enumerate(angles)])


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_pytorchs_decoder(tied: bool) -> None:
    decoder = transformer(tied_output=tied)
    theirs = pytorch_decoder(decoder)
    torch.manual_seed(1)
    images, lengths = torch.randn(2, R, D), torch.tensor([5, 3, 4])
    tokens = torch.randint(4, V, (3, 5))
    tokens[:, 0] = BEGIN
    padding = torch.arange(5) >= lengths.unsqueeze(1)
    tokens[padding] = PAD
    image_of_row = torch.tensor([1, 0, 1])
    regions = torch.relu(decoder.region(decoder.image_norm(images)))[image_of_row]
    words = decoder.word(decoder.embedding(tokens)) * math.sqrt(H)
    words = words + torch.stack([place(time) for time in range(5)])
    read = theirs(
        words,
        regions,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(5),
        tgt_is_causal=True,
    )
    expected = decoder.output(read[~padding], decoder.embedding)
    found = decoder(images, tokens, lengths, image_of_row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    learned = [p for p in decoder.parameters() if p.requires_grad]
    ours = torch.autograd.grad(found.square().sum(), learned, retain_graph=True)
    # PyTorch's layers hold copies: what both share is the same tensor, and so are its gradients.
    shared = [decoder.region.weight, decoder.word.weight, decoder.norm.weight]
    own = {id(p): g for p, g in zip(learned, ours, strict=True)}
    for parameter, gradient in zip(
        shared, torch.autograd.grad(expected.square().sum(), shared), strict=True
    ):
        torch.testing.assert_close(own[id(parameter)], gradient, atol=1e-4, rtol=1e-4)


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
    found, width = mix(queries, memory, HEADS, causal=True)[0], H // HEADS
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
