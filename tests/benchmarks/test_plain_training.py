"""The ways that training is compared with learn the same: equal losses, equal gradients."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from showtell.config import build, choices_of, compose
from showtell.data.batches import Batch
from showtell.models.lstm import LSTMDecoder
from showtell.models.transformer import TransformerDecoder
from showtell.text.vocabulary import BEGIN, END, PAD
from showtell.training.loss import cross_entropy_

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from plain_training import (
    CellLoop,
    PrefixLoop,
    PyTorchTransformer,
    StepLoop,
    cut_prefixes,
    pad_captions,
    take,
)

V, D = 23, 6


def decoder() -> LSTMDecoder:
    torch.manual_seed(0)
    return LSTMDecoder(
        vocabulary_size=V,
        feature_size=D,
        vector_width=5,
        embedding_width=7,
        hidden_size=8,
        dense_size=9,
        image_dropout=0.0,
        word_dropout=0.0,
        output_dropout=0.0,
    )


def batch() -> Batch:
    torch.manual_seed(1)
    lengths = torch.tensor([4, 1, 6, 2, 4])
    words = [[*torch.randint(4, V, (n - 1,)).tolist(), END] for n in lengths.tolist()]
    tokens = torch.full((5, 6), PAD)
    for row, each in zip(tokens, words, strict=True):
        row[: len(each)] = torch.tensor([BEGIN, *each[:-1]])
    targets = torch.tensor([word for each in words for word in each])
    images = torch.tensor([0, 0, 1, 2, 1])
    return Batch(("a", "b", "c"), torch.randn(3, D), tokens, targets, lengths, images)


def own_loss(model: LSTMDecoder) -> Tensor:
    given = batch()
    scores = model(given.features, given.tokens, given.lengths, given.image_of_row)
    return cross_entropy_(scores, given.targets, label_smoothing=0.1)


@pytest.mark.parametrize("way", ["cell loop", "prefixes"])
def test_loss_and_gradients_are_ours(way: str) -> None:
    model, captions = decoder(), pad_captions(batch())
    plain: CellLoop | PrefixLoop
    if way == "cell loop":
        plain = CellLoop(model, label_smoothing=0.1)
        loss = plain(captions)
    else:
        plain = PrefixLoop(model, label_smoothing=0.1)
        loss = plain(cut_prefixes(captions, width=9))
    expected = own_loss(model)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    expected.backward()
    theirs = {name.removeprefix("layers."): p.grad for name, p in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        name = name.replace("lstm.", "cell.").removesuffix("_l0") if way == "cell loop" else name
        torch.testing.assert_close(theirs[name], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", choices_of("model"))
def test_a_loop_of_steps_has_the_loss_of_every_model(name: str) -> None:
    torch.manual_seed(0)
    small = ["model.embedding_width=16", "model.hidden_size=16"]
    config = compose([f"model={name}", *small])
    sizes = {"vocabulary_size": V, "feature_size": D, "vector_width": 5}
    model = build("model", config["model"], **sizes).eval()
    given = batch()
    if model.feature_kind == "grid":
        given = replace(given, features=torch.randn(3, 4, D))
    scores = model(given.features, given.tokens, given.lengths, given.image_of_row)
    expected = cross_entropy_(scores, given.targets, label_smoothing=0.1).item()
    ways: list[StepLoop | PyTorchTransformer] = [StepLoop(model, label_smoothing=0.1)]
    if isinstance(model, TransformerDecoder):
        ways.append(PyTorchTransformer(model, label_smoothing=0.1))
    captions = pad_captions(given)
    assert [way.eval()(captions).item() for way in ways] == pytest.approx(
        [expected] * len(ways), abs=1e-5
    )


def test_each_token_has_one_prefix() -> None:
    captions = pad_captions(batch())
    prefixes = cut_prefixes(captions, width=9)
    assert len(prefixes.targets) == captions.useful == 17
    first = take(prefixes, [0, 1, 5])
    assert first.lengths.tolist() == [1, 2, 1]
    assert first.tokens[1].tolist() == [BEGIN, int(captions.targets[0, 0]), *[PAD] * 7]
    assert first.targets.tolist() == captions.targets[[0, 0, 2], [0, 1, 0]].tolist()
