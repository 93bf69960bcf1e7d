"""Attentive decoders against plain ones, written position by position and region by region."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell.decoding.beam import BeamSearch
from showtell.models.adaptive import AdaptiveDecoder
from showtell.models.attention import AttentionDecoder
from showtell.models.decoder import AttentiveDecoder
from showtell.models.lstm import LSTMDecoder
from showtell.models.show_attend_tell import ShowAttendTellDecoder
from showtell.models.transformer import TransformerDecoder
from showtell.models.updown import UpDownDecoder
from showtell.text.vocabulary import BEGIN

V, D, R, H = 11, 6, 4, 8
SEARCH = BeamSearch(
    beam_size=3, min_length=4, max_length=7, length_penalty=0.7, allow_unknown=False
)


# Scores and attention, word by word.
Plain = Iterator[tuple[Tensor, Tensor]]
AfterRegions = AttentionDecoder | UpDownDecoder | AdaptiveDecoder  # with a RegionAttention
Attentive = AfterRegions | ShowAttendTellDecoder | TransformerDecoder


def sizes(**more: int) -> dict[str, Any]:
    given = {"vocabulary_size": V, "feature_size": D, "vector_width": 3, "embedding_width": 5}
    dropout = {"image_dropout": 0.0, "word_dropout": 0.0, "output_dropout": 0.0}
    return {
        **given,
        "extend_vectors": True,
        "tied_output": True,
        "hidden_size": H,
        **dropout,
        **more,
    }


def choosy(decoder: Attentive) -> Any:
    """Untrained attention is nearly even; larger weights make it choose."""
    for parameter in decoder.parameters():
        parameter.data.mul_(2.5)
    return decoder.eval()


def attention(seed: int = 0) -> AttentionDecoder:
    torch.manual_seed(seed)
    decoder: AttentionDecoder = choosy(AttentionDecoder(**sizes(dense_size=9)))
    return decoder


def updown(seed: int = 0) -> UpDownDecoder:
    torch.manual_seed(seed)
    decoder: UpDownDecoder = choosy(UpDownDecoder(**sizes()))
    return decoder


def adaptive(seed: int = 0) -> AdaptiveDecoder:
    torch.manual_seed(seed)
    decoder: AdaptiveDecoder = choosy(AdaptiveDecoder(**sizes()))
    return decoder


def show_attend_tell(seed: int = 0) -> ShowAttendTellDecoder:
    torch.manual_seed(seed)
    decoder: ShowAttendTellDecoder = choosy(ShowAttendTellDecoder(**sizes(score_size=3)))
    return decoder


def transformer(seed: int = 0) -> TransformerDecoder:
    torch.manual_seed(seed)
    decoder: TransformerDecoder = choosy(
        TransformerDecoder(**sizes(dense_size=9, layers=2, heads=2))
    )
    return decoder


ATTENTIVE = pytest.mark.parametrize(
    "build", [attention, show_attend_tell, updown, adaptive, transformer]
)
Build = Callable[..., Attentive]


def regions_of(decoder: Attentive, image: Tensor) -> list[Tensor]:
    return [torch.relu(decoder.region(decoder.image_norm(image[r]))) for r in range(R)]


def word_of(decoder: Attentive, token: int) -> Tensor:
    assert decoder.embedding.extension is not None
    both = (decoder.embedding.vectors, decoder.embedding.extension)
    return torch.cat([embedding.weight[token] for embedding in both])


def seen(decoder: AfterRegions, asking: Tensor, regions: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention (R,) and context (H,) of what asks (H,)."""
    asked = decoder.attention.query.weight @ asking
    heard = torch.stack([torch.exp(asked @ v / math.sqrt(H)) for v in regions])
    share = heard / heard.sum()
    return share, torch.stack([share[r] * regions[r] for r in range(R)]).sum(dim=0)


def said(decoder: Attentive, hidden: Tensor) -> Tensor:
    """Scores (V,) of the tied output."""
    output = decoder.output
    return decoder.embedding.table() @ (output.projection.weight @ hidden) + output.bias


def plain_attention(decoder: AttentionDecoder, image: Tensor, caption: list[int]) -> Plain:
    """Scores (V,) and attention (R,) after each word of a caption of the image (R, D)."""
    cell, regions = nn.LSTMCell(5, H), regions_of(decoder, image)
    weights = {name.removesuffix("_l0"): p for name, p in decoder.lstm.state_dict().items()}
    cell.load_state_dict(weights)
    first = decoder.initial(torch.stack(regions).mean(dim=0))
    state = torch.tanh(first[:H]), first[H:]
    for token in caption:
        state = cell(word_of(decoder, token), state)
        share, context = seen(decoder, state[0], regions)
        dense = decoder.hidden_dense(state[0]) + decoder.context_dense.weight @ context
        yield said(decoder, torch.tanh(dense)), share


def lstm_cell(inputs: Tensor, recurrent: Tensor, bias: Tensor) -> nn.LSTMCell:
    cell = nn.LSTMCell(inputs.shape[1], H)
    zeros = torch.zeros(4 * H)
    parts = {"weight_ih": inputs, "weight_hh": recurrent, "bias_ih": bias, "bias_hh": zeros}
    cell.load_state_dict(parts)
    return cell


def plain_updown(decoder: UpDownDecoder, image: Tensor, caption: list[int]) -> Plain:
    """The same by equations 1 to 6 of Anderson et al. 2018, with inputs in the paper's order."""
    past, language = decoder.attention_gates.weight, decoder.language_gates
    words, mean_part = decoder.word_gates, decoder.image_gates.weight
    inputs = torch.cat([past[:, H:], mean_part, words.weight], dim=1)
    first = lstm_cell(inputs, past[:, :H], words.bias)
    second = lstm_cell(language.weight[:, : 2 * H], language.weight[:, 2 * H :], language.bias)
    regions = regions_of(decoder, image)
    asking = saying = (torch.zeros(H), torch.zeros(H))
    for token in caption:
        mean = torch.stack(regions).mean(dim=0)
        asking = first(torch.cat([saying[0], mean, word_of(decoder, token)]), asking)
        share, context = seen(decoder, asking[0], regions)
        saying = second(torch.cat([context, asking[0]]), saying)
        yield said(decoder, saying[0]), share


def plain_adaptive(decoder: AdaptiveDecoder, image: Tensor, caption: list[int]) -> Plain:
    """The same by equations 9 to 13 of Lu et al. 2017, and a product as the score."""
    cell, regions = nn.LSTMCell(5, H), regions_of(decoder, image)
    weights = {name.removesuffix("_l0"): p for name, p in decoder.lstm.state_dict().items()}
    cell.load_state_dict(weights)
    first = decoder.initial(torch.stack(regions).mean(dim=0))
    hidden, memory = torch.tanh(first[:H]), first[H:]
    for token in caption:
        word, before = word_of(decoder, token), hidden
        hidden, memory = cell(word, (hidden, memory))
        gate = decoder.word_gate.weight @ word + decoder.word_gate.bias
        gate = torch.sigmoid(gate + decoder.hidden_gate.weight @ before)
        sentinel = gate * torch.tanh(memory)
        asked = decoder.attention.query.weight @ hidden
        keys = [*regions, decoder.sentinel_key.weight @ sentinel]
        heard = torch.stack([torch.exp(asked @ key / math.sqrt(H)) for key in keys])
        alpha = heard / heard.sum()
        beta = alpha[-1]
        picture = heard[:-1] / heard[:-1].sum() @ torch.stack(regions)
        context = beta * sentinel + (1 - beta) * picture
        yield said(decoder, context + hidden), alpha[:-1]


def plain_show_attend_tell(
    decoder: ShowAttendTellDecoder, image: Tensor, caption: list[int]
) -> Plain:
    """The same by Xu et al. 2015: equations 1 to 7, with soft attention and its gate beta."""
    score, regions = decoder.attention, regions_of(decoder, image)
    past = decoder.state_gates.weight
    inputs = torch.cat([decoder.word_gates.weight, past[:, H:]], dim=1)
    cell = lstm_cell(inputs, past[:, :H], decoder.word_gates.bias)
    first = decoder.initial(torch.stack(regions).mean(dim=0))
    hidden, memory = torch.tanh(first[:H]), first[H:]
    for token in caption:
        word, asked = word_of(decoder, token), score.query.weight @ hidden
        heard = [score.score.weight @ torch.tanh(asked + score.key(v)) for v in regions]
        alpha = torch.softmax(torch.cat(heard), dim=0)
        beta = torch.sigmoid(decoder.looking_gate.weight @ hidden + decoder.looking_gate.bias)
        seen = beta * torch.stack([alpha[r] * regions[r] for r in range(R)]).sum(dim=0)
        hidden, memory = cell(torch.cat([word, seen]), (hidden, memory))
        deep = word + decoder.hidden_dense(hidden) + decoder.context_dense(seen)
        yield said(decoder, deep), alpha


PLAIN: list[tuple[Attentive, Callable[..., Plain]]] = [
    (attention(), plain_attention),
    (updown(), plain_updown),
    (adaptive(), plain_adaptive),
    (show_attend_tell(), plain_show_attend_tell),
]
NAMES = ["attention", "updown", "adaptive", "show_attend_tell"]


@pytest.mark.parametrize(("decoder", "plain"), PLAIN, ids=NAMES)
@torch.no_grad()
def test_it_is_the_plain_decoder(decoder: Attentive, plain: Callable[..., Plain]) -> None:
    torch.manual_seed(1)
    images = torch.randn(2, R, D)
    captions = [[BEGIN, 4, 5, 6], [BEGIN, 7, 8, 9]]
    found = decoder(images, torch.tensor(captions), torch.tensor([4, 4]), torch.tensor([1, 0]))
    for row, caption in enumerate(captions):
        scores, shares = zip(*plain(decoder, images[1 - row], caption), strict=True)
        own = found[4 * row : 4 * row + 4]
        torch.testing.assert_close(own, torch.stack(scores), atol=1e-5, rtol=1e-5)
        attended = decoder.attend(images[1 - row], torch.tensor(caption))
        torch.testing.assert_close(attended, torch.stack(shares), atol=1e-6, rtol=0)


@ATTENTIVE
@torch.no_grad()
def test_attention_is_shares_and_knows_no_later_word(build: Build) -> None:
    decoder, image = build(), torch.randn(R, D)
    tokens = torch.tensor([BEGIN, 4, 5, 6, 7])
    shares = decoder.attend(image, tokens)
    assert shares.shape == (5, R)
    assert shares.min() >= 0
    looked = shares.sum(dim=1)
    if isinstance(decoder, AdaptiveDecoder):
        assert ((looked > 0) & (looked < 1)).all()
    else:
        torch.testing.assert_close(looked, torch.ones(5))
    torch.testing.assert_close(decoder.attend(image, tokens[:3]), shares[:3])


@ATTENTIVE
@torch.no_grad()
def test_regions_have_no_order(build: Build) -> None:
    decoder, image = build(), torch.randn(R, D)
    tokens, order = torch.tensor([BEGIN, 4, 5]), torch.tensor([2, 0, 3, 1])
    shares, shuffled = decoder.attend(image, tokens), decoder.attend(image[order], tokens)
    torch.testing.assert_close(shuffled, shares[:, order])
    rest = tokens.unsqueeze(0), torch.tensor([3]), torch.tensor([0])
    scores, moved = (decoder(i.unsqueeze(0), *rest) for i in (image, image[order]))
    torch.testing.assert_close(moved, scores)


@ATTENTIVE
@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_beams_of_many_images_each_look_at_their_own(build: Build, seed: int) -> None:
    decoder, images = build(seed), torch.randn(6, R, D)
    together = [found.token_ids for found in SEARCH(decoder, images)]
    alone = [SEARCH(decoder, images[i : i + 1])[0].token_ids for i in range(6)]
    assert together == alone
    assert len(set(together)) > 1


@ATTENTIVE
def test_only_an_attentive_decoder_is_one(build: Build) -> None:
    assert isinstance(build(), AttentiveDecoder)
    assert not hasattr(LSTMDecoder, "attend")


# Losses of the first and the 21st step: a change of the code that is meant to change nothing must
# give these.
RECORDED = {AttentionDecoder: [2.41207, 1.37059], UpDownDecoder: [2.39503, 1.64444]}


@pytest.mark.parametrize("kind", RECORDED)
def test_it_learns_to_find_the_region_that_tells_the_word(kind: type[Attentive]) -> None:
    torch.manual_seed(1)
    decoder = kind(**sizes(**({"dense_size": 9} if kind is AttentionDecoder else {}))).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    things, every = 2 * torch.randn(4, D), torch.arange(32)
    begin, one = torch.full((32, 1), BEGIN), torch.ones(32, dtype=torch.long)
    losses = []
    for _ in range(200):
        place, thing = torch.randint(R, (32,)), torch.randint(4, (32,))
        images = torch.randn(32, R, D) / 2
        images[every, place] = things[thing]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(decoder(images, begin, one, every), thing + 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [losses[0], losses[20]] == pytest.approx(RECORDED[kind], rel=1e-3)
    assert losses[-1] < 0.5
    with torch.no_grad():
        places = [int(decoder.attend(image, begin[0])[0].argmax()) for image in images]
    # By chance it would be 8 of the 32.
    assert sum(found == at for found, at in zip(places, place.tolist(), strict=True)) >= 20
