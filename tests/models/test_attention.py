"""The attentive decoder against a plain one, written position by position and region by region."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from showtell.decoding.beam import BeamSearch
from showtell.models.attention import AttentionDecoder
from showtell.models.decoder import AttentiveDecoder
from showtell.models.lstm import LSTMDecoder
from showtell.text.vocabulary import BEGIN

V, D, R, H = 11, 6, 4, 8
SEARCH = BeamSearch(
    beam_size=3, min_length=1, max_length=7, length_penalty=0.7, allow_unknown=False
)


def attention(seed: int = 0, dropout: float = 0.0) -> AttentionDecoder:
    torch.manual_seed(seed)
    decoder = AttentionDecoder(
        vocabulary_size=V,
        feature_size=D,
        vector_width=3,
        embedding_width=5,
        extend_vectors=True,
        tied_output=True,
        hidden_size=H,
        dense_size=9,
        image_dropout=dropout,
        word_dropout=dropout,
        output_dropout=dropout,
    ).eval()
    for parameter in decoder.parameters():
        parameter.data.mul_(2.0)  # untrained attention is nearly even; make it choose
    return decoder


def plain(decoder: AttentionDecoder, image: Tensor, caption: list[int]) -> tuple[Tensor, Tensor]:
    """Scores (T, V) and attention (T, R) of one caption of the image (R, D)."""
    cell = nn.LSTMCell(5, H)
    weights = {name.removesuffix("_l0"): p for name, p in decoder.lstm.state_dict().items()}
    cell.load_state_dict(weights)
    regions = [torch.relu(decoder.region(decoder.image_norm(image[r]))) for r in range(R)]
    first = decoder.initial(sum(regions) / R)  # type: ignore[arg-type]
    state = torch.tanh(first[:H]), first[H:]
    scores, shares = [], []
    for token in caption:
        word = torch.cat([e.weight[token] for e in (decoder.embedding.vectors, more(decoder))])
        state = cell(word, state)
        asked = decoder.attention.query.weight @ state[0]
        heard = torch.stack([torch.exp(asked @ v / math.sqrt(H)) for v in regions])
        share = heard / heard.sum()
        context = sum(share[r] * regions[r] for r in range(R))
        dense = decoder.hidden_dense(state[0]) + decoder.context_dense.weight @ context
        said = decoder.output.projection.weight @ torch.tanh(dense)
        scores.append(decoder.embedding.table() @ said + decoder.output.bias)
        shares.append(share)
    return torch.stack(scores), torch.stack(shares)


def more(decoder: AttentionDecoder) -> nn.Embedding:
    assert decoder.embedding.extension is not None
    return decoder.embedding.extension


@torch.no_grad()
def test_it_is_the_plain_decoder() -> None:
    decoder, images = attention(), torch.randn(2, R, D)
    captions = [[BEGIN, 4, 5, 6], [BEGIN, 7, 8, 9]]
    found = decoder(images, torch.tensor(captions), torch.tensor([4, 4]), torch.tensor([1, 0]))
    for row, caption in enumerate(captions):
        scores, shares = plain(decoder, images[1 - row], caption)
        torch.testing.assert_close(found[4 * row : 4 * row + 4], scores, atol=1e-5, rtol=0)
        attended = decoder.attend(images[1 - row], torch.tensor(caption))
        torch.testing.assert_close(attended, shares, atol=1e-6, rtol=0)


@torch.no_grad()
def test_attention_is_shares_and_knows_no_later_word() -> None:
    decoder, image = attention(), torch.randn(R, D)
    tokens = torch.tensor([BEGIN, 4, 5, 6, 7])
    shares = decoder.attend(image, tokens)
    assert shares.shape == (5, R)
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(decoder.attend(image, tokens[:3]), shares[:3])


@torch.no_grad()
def test_regions_have_no_order() -> None:
    decoder, image = attention(), torch.randn(R, D)
    tokens, order = torch.tensor([BEGIN, 4, 5]), torch.tensor([2, 0, 3, 1])
    shares, shuffled = decoder.attend(image, tokens), decoder.attend(image[order], tokens)
    torch.testing.assert_close(shuffled, shares[:, order])
    rest = tokens.unsqueeze(0), torch.tensor([3]), torch.tensor([0])
    scores, moved = (decoder(i.unsqueeze(0), *rest) for i in (image, image[order]))
    torch.testing.assert_close(moved, scores)


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_beams_of_many_images_each_look_at_their_own(seed: int) -> None:
    decoder, images = attention(seed), torch.randn(6, R, D)
    together = [found.token_ids for found in SEARCH(decoder, images)]
    alone = [SEARCH(decoder, images[i : i + 1])[0].token_ids for i in range(6)]
    assert together == alone
    assert len(set(together)) > 1


def test_only_an_attentive_decoder_is_one() -> None:
    assert isinstance(attention(), AttentiveDecoder)
    assert not hasattr(LSTMDecoder, "attend")
