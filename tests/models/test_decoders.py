"""Every decoder: teacher forcing equals single steps, and padding and company change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from showtell.models.adaptive import AdaptiveDecoder
from showtell.models.attention import AttentionDecoder
from showtell.models.decoder import State
from showtell.models.embedding import WordEmbedding
from showtell.models.lstm import LSTMDecoder
from showtell.models.merge import MergeDecoder
from showtell.models.recurrence import fold_lstm, step_lstm
from showtell.models.show_attend_tell import ShowAttendTellDecoder
from showtell.models.transformer import TransformerDecoder
from showtell.models.updown import UpDownDecoder
from showtell.text.vocabulary import BEGIN, PAD, SPECIALS

V, D, R = 11, 6, 4


NO_DROPOUT = {"image_dropout": 0.0, "word_dropout": 0.0, "output_dropout": 0.0}
WIDE = {"extend_vectors": False, "tied_output": False}


def lstm(**dropout: float) -> LSTMDecoder:
    return LSTMDecoder(
        vocabulary_size=V,
        feature_size=D,
        vector_width=5,
        embedding_width=7,
        hidden_size=8,
        dense_size=9,
        **NO_DROPOUT | dropout,
    )


def merge(**dropout: float) -> MergeDecoder:
    return MergeDecoder(
        vocabulary_size=V,
        feature_size=D,
        vector_width=5,
        embedding_width=7,
        hidden_size=8,
        **NO_DROPOUT | dropout,
    )


def attention(**changes: float) -> AttentionDecoder:
    sizes = {"embedding_width": 7, "hidden_size": 8, "dense_size": 9}
    return AttentionDecoder(
        vocabulary_size=V, feature_size=D, vector_width=5, **WIDE | sizes | NO_DROPOUT | changes
    )


def tied(**changes: float) -> AttentionDecoder:
    return attention(tied_output=True, **changes)


def extended(**changes: float) -> AttentionDecoder:
    return attention(tied_output=True, extend_vectors=True, **changes)


def updown(**changes: float) -> UpDownDecoder:
    sizes = {"embedding_width": 7, "hidden_size": 8}
    return UpDownDecoder(
        vocabulary_size=V, feature_size=D, vector_width=5, **WIDE | sizes | NO_DROPOUT | changes
    )


def show_attend_tell(**changes: float) -> ShowAttendTellDecoder:
    sizes = {"embedding_width": 7, "hidden_size": 8, "score_size": 3}
    return ShowAttendTellDecoder(
        vocabulary_size=V, feature_size=D, vector_width=5, **WIDE | sizes | NO_DROPOUT | changes
    )


def adaptive(**changes: float) -> AdaptiveDecoder:
    sizes = {"embedding_width": 7, "hidden_size": 8}
    return AdaptiveDecoder(
        vocabulary_size=V, feature_size=D, vector_width=5, **WIDE | sizes | NO_DROPOUT | changes
    )


def transformer(**changes: float) -> TransformerDecoder:
    sizes = {"embedding_width": 7, "hidden_size": 8, "dense_size": 12, "layers": 2, "heads": 2}
    return TransformerDecoder(
        vocabulary_size=V, feature_size=D, vector_width=5, **WIDE | sizes | NO_DROPOUT | changes
    )


OF_ALL_CHOICES = [attention, show_attend_tell, updown, adaptive, transformer]
BUILDERS = [lstm, merge, tied, extended, *OF_ALL_CHOICES]
WITHOUT_CELLS = [transformer]
DECODERS = pytest.mark.parametrize("build", BUILDERS)
Decoder = (
    LSTMDecoder
    | MergeDecoder
    | AttentionDecoder
    | UpDownDecoder
    | AdaptiveDecoder
    | ShowAttendTellDecoder
    | TransformerDecoder
)
Build = Callable[..., Decoder]


def batch(decoder: Decoder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three images and five captions of 1 to 6 positions; the second image has most of them."""
    lengths = torch.tensor([4, 1, 6, 2, 4])
    tokens = torch.randint(4, V, (5, 6))
    tokens[:, 0] = BEGIN
    tokens[torch.arange(6).unsqueeze(0) >= lengths.unsqueeze(1)] = PAD
    shape = (3, D) if decoder.feature_kind == "pooled" else (3, R, D)
    return torch.randn(shape), tokens, lengths, torch.tensor([1, 0, 1, 2, 1])


@DECODERS
def test_forward_equals_step_by_step(build: Build) -> None:
    torch.manual_seed(0)
    decoder = build().eval()
    features, tokens, lengths, image_of_row = batch(decoder)
    logits_PV = decoder(features, tokens, lengths, image_of_row)
    expected = []
    for row, length in enumerate(lengths.tolist()):
        state = decoder.start(features[image_of_row[row]].unsqueeze(0))
        for position in range(length):
            scores, state = decoder.step(tokens[row, position].unsqueeze(0), state)
            expected.append(scores[0])
    torch.testing.assert_close(logits_PV, torch.stack(expected), atol=1e-5, rtol=0)


@DECODERS
def test_without_gradients_the_scores_are_the_same(build: Build) -> None:
    """Evaluation takes short cuts that no gradient goes through."""
    torch.manual_seed(0)
    decoder = build().eval()
    given = batch(decoder)
    with torch.no_grad():
        found = decoder(*given)
    torch.testing.assert_close(found, decoder(*given), atol=1e-5, rtol=0)


@DECODERS
def test_more_padding_and_another_order_change_nothing(build: Build) -> None:
    torch.manual_seed(0)
    decoder = build().eval()
    features, tokens, lengths, image_of_row = batch(decoder)
    plain = decoder(features, tokens, lengths, image_of_row)
    wider = torch.nn.functional.pad(tokens, (0, 4), value=PAD)
    torch.testing.assert_close(decoder(features, wider, lengths, image_of_row), plain)
    order = torch.tensor([3, 0, 4, 2, 1])
    parts = plain.split(lengths.tolist())
    shuffled = decoder(features, tokens[order], lengths[order], image_of_row[order])
    torch.testing.assert_close(shuffled, torch.cat([parts[i] for i in order.tolist()]))


@DECODERS
def test_each_parameter_learns_and_the_image_matters(build: Build) -> None:
    torch.manual_seed(0)
    decoder = build(image_dropout=0.2, word_dropout=0.2, output_dropout=0.2).train()
    features, tokens, lengths, image_of_row = batch(decoder)
    decoder(features, tokens, lengths, image_of_row).square().sum().backward()
    idle = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    decoder.eval()
    one = decoder(features, tokens, lengths, image_of_row)
    assert not torch.allclose(one, decoder(features.flip(0), tokens, lengths, image_of_row))


@DECODERS
def test_frozen_vectors_stay_and_what_widens_them_learns(build: Build) -> None:
    torch.manual_seed(0)
    decoder = build()
    glove = torch.randn(V - len(SPECIALS), 5)
    decoder.embedding.load_vectors(glove)
    decoder.embedding.train_vectors(False)
    decoder(*batch(decoder)).sum().backward()
    assert decoder.embedding.vectors.weight.grad is None
    wider = decoder.embedding.extension or decoder.embedding.projection
    assert wider.weight.grad.any()  # type: ignore[union-attr]
    torch.testing.assert_close(decoder.embedding.vectors.weight[len(SPECIALS) :].detach(), glove)


@DECODERS
def test_in_bfloat16_it_computes_nearly_the_same_and_cells_stay_exact(build: Build) -> None:
    torch.manual_seed(0)
    decoder = build().eval()
    given = batch(decoder)
    exact = decoder(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = decoder(*given).float()
        state = decoder.start(given[0])
        for _ in range(2):
            scores, state = decoder.step(torch.tensor([4, 5, 6]), state)
    assert scores.isfinite().all()
    if build not in WITHOUT_CELLS:
        assert state.rows[1].dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    rounded.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize("build", OF_ALL_CHOICES)
def test_words_may_be_all_learned(build: Build) -> None:
    """Vectors as wide as the embedding: nothing is loaded, projected or added."""
    torch.manual_seed(0)
    decoder = build(embedding_width=5, extend_vectors=True, tied_output=True)
    assert decoder.embedding.extension is None
    features, tokens, lengths, image_of_row = batch(decoder)
    logits_PV = decoder(features, tokens, lengths, image_of_row)
    scores, _ = decoder.step(tokens[1, :1], decoder.start(features[:1]))
    torch.testing.assert_close(logits_PV[4], scores[0], atol=1e-5, rtol=0)
    logits_PV.square().sum().backward()
    assert decoder.embedding.vectors.weight.grad is not None


@pytest.mark.parametrize(("width", "extended"), [(None, False), (7, False), (7, True)])
def test_step_lstm_is_the_published_cell(width: int | None, extended: bool) -> None:
    torch.manual_seed(0)
    embedding = WordEmbedding(vocabulary_size=V, vector_width=3, width=width, extended=extended)
    layer, cell = nn.LSTM(embedding.width, 4), nn.LSTMCell(embedding.width, 4)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    words, state = torch.randint(V, (5,)), (torch.randn(5, 4), torch.randn(5, 4))
    found = step_lstm(embedding.look_up(words), *state, *fold_lstm(layer, embedding))
    for ours, theirs in zip(found, cell(embedding(words), state), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_state_selects_rows_and_shares_images() -> None:
    state = State((torch.arange(3), torch.arange(6).view(3, 2)), (torch.tensor([7, 8, 9]),))
    selected = state.select(torch.tensor([2, 2, 0]))
    assert selected.rows[0].tolist() == [2, 2, 0]
    assert selected.rows[1].tolist() == [[4, 5], [4, 5], [0, 1]]
    assert selected.images[0] is state.images[0]


def test_a_state_keeps_images_with_their_rows() -> None:
    two_rows_each = State((torch.arange(6),), (torch.tensor([[7], [8], [9]]),))
    two_rows_each = two_rows_each._replace(weights=(torch.eye(2),))
    kept = two_rows_each.keep(torch.tensor([0, 2]), torch.tensor([0, 1, 4, 5]))
    assert kept.rows[0].tolist() == [0, 1, 4, 5]
    assert kept.images[0].tolist() == [[7], [9]]
    assert kept.weights is two_rows_each.weights


@DECODERS
def test_an_encoder_can_learn_from_the_gradient_of_its_features(build: Build) -> None:
    """Along any direction it is the slope of what is computed."""
    torch.manual_seed(0)
    decoder = build().double()
    shape = (2, D) if decoder.feature_kind == "pooled" else (2, R, D)
    features = torch.randn(shape, dtype=torch.double, requires_grad=True)
    direction = torch.randn(shape, dtype=torch.double)
    tokens = torch.tensor([[BEGIN, 5, 6], [BEGIN, 7, PAD], [BEGIN, 8, PAD]])
    lengths, image_of_row = torch.tensor([3, 2, 1]), torch.tensor([0, 0, 1])

    def total(seen: Tensor) -> Tensor:
        return decoder(seen, tokens, lengths, image_of_row).log_softmax(dim=1)[:, 4].sum()

    total(features).backward()
    assert features.grad is not None
    step = 1e-5 * direction
    with torch.no_grad():
        slope = (total(features + step) - total(features - step)) / 2e-5
    torch.testing.assert_close((features.grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)
