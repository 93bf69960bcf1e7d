"""What a step learns from: rewards by hand, the policy gradient by enumeration."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.data.batches import Batch
from showtell.metrics.cider import CiderD, DocumentFrequencies
from showtell.models.lstm import LSTMDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary
from showtell.training.left_out import LeftOut
from showtell.training.objectives import CrossEntropy, Rewards, SelfCritical
from showtell.types import CaptionedImage

CAPTIONS = {
    "a.jpg": ("one two one two", "one two"),
    "b.jpg": ("two two one", "two one"),
    "c.jpg": ("one", "three one"),  # only so that words of a and b are not in all images
}
WORDS = ("one", "two")  # the ids 4 and 5; `three` is too rare to be one
LONGEST = 5


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(WORDS, min_count=2, counts=[7, 6])


@pytest.fixture
def images() -> list[CaptionedImage]:
    return [CaptionedImage(i, Path(i), sentences, "train") for i, sentences in CAPTIONS.items()]


@pytest.fixture
def decoder() -> LSTMDecoder:
    torch.manual_seed(3)
    made = LSTMDecoder(
        vocabulary_size=6,
        feature_size=5,
        vector_width=4,
        embedding_width=None,
        hidden_size=6,
        dense_size=6,
        image_dropout=0.0,
        word_dropout=0.0,
        output_dropout=0.0,
    )
    with torch.no_grad():  # most captions end before they are cut
        dict(made.named_parameters())["output.bias"][END] += 1.5
    return made


def batch(vocabulary: Vocabulary) -> Batch:
    """The first two images with their four captions."""
    rows = [vocabulary.encode(s.split()) for i in ("a.jpg", "b.jpg") for s in CAPTIONS[i]]
    lengths = torch.tensor([len(row) + 1 for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), PAD)
    for row, words in zip(tokens, rows, strict=True):
        row[: len(words) + 1] = torch.tensor([BEGIN, *words])
    return Batch(
        image_ids=("a.jpg", "b.jpg"),
        features=torch.randn(2, 5, generator=torch.Generator().manual_seed(0)),
        tokens=tokens,
        targets=torch.tensor([token for row in rows for token in (*row, END)]),
        lengths=lengths,
        image_of_row=torch.tensor([0, 0, 1, 1]),
    )


def settings(**changed: Any) -> SelfCritical:
    usual = {"samples": 3, "baseline": "others", "bleu_weight": 0.0, "max_length": LONGEST}
    return SelfCritical(**{**usual, **changed})


def test_cross_entropy_is_pytorchs(vocabulary: Vocabulary, decoder: LSTMDecoder) -> None:
    given = batch(vocabulary)
    outcome = CrossEntropy(label_smoothing=0.2, scheduled_sampling=0.0)(decoder, given, 0.5)
    scores = decoder(given.features, given.tokens, given.lengths, given.image_of_row)
    torch.testing.assert_close(
        outcome.loss, F.cross_entropy(scores, given.targets, label_smoothing=0.2)
    )
    assert outcome.weight == outcome.positions == len(given.targets)


class Listener(nn.Module):
    """Notes what it reads; says `two` at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def forward(self, features: Tensor, tokens: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        self.read.append(tokens)
        scores = torch.zeros(int(lengths.sum()), 6)
        scores[:, 5] = 100.0
        return scores


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_scheduled_sampling_reads_the_models_own_words(
    vocabulary: Vocabulary, progress: float, share: float
) -> None:
    given, listener = batch(vocabulary), Listener()
    CrossEntropy(label_smoothing=0.0, scheduled_sampling=1.0)(listener, given, progress)
    plainly, mixed = listener.read
    torch.testing.assert_close(plainly, given.tokens)
    own = torch.where((given.tokens == PAD) | (given.tokens == BEGIN), given.tokens, 5)
    torch.testing.assert_close(mixed, own if share else given.tokens)


def test_scheduled_sampling_replaces_the_share_it_says(vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    given, listener = batch(vocabulary), Listener()
    objective = CrossEntropy(label_smoothing=0.0, scheduled_sampling=0.5)
    for _ in range(300):
        objective(listener, given, 0.5)
    words = (given.tokens == 4).sum().item() * 300
    replaced = sum(int(((read == 5) & (given.tokens == 4)).sum()) for read in listener.read[1::2])
    assert replaced / words == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("objective", ["scheduled sampling", "self-critical"])
def test_all_weights_learn_in_mixed_precision(
    vocabulary: Vocabulary, decoder: LSTMDecoder, images: list[CaptionedImage], objective: str
) -> None:
    """A pass without gradients comes first, and autocast keeps the weights that it casts.

    The locked PyTorch would pass without `_forget_casts`; PyTorch 2.10 may not.
    """
    chosen: Any = CrossEntropy(label_smoothing=0.0, scheduled_sampling=0.5)
    if objective == "self-critical":
        chosen = settings().on(images, vocabulary, lambda: pytest.fail("not read"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen(decoder, batch(vocabulary), 0.5).loss.backward()
    lacking = [name for name, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_rewards_are_cider_d_with_an_end_and_the_rare_word_as_it_is(
    images: list[CaptionedImage], vocabulary: Vocabulary
) -> None:
    rewards = Rewards(images, vocabulary, bleu_weight=0.0)
    ended = {i: [[*s.split(), "<end>"] for s in CAPTIONS[i]] for i in CAPTIONS}
    cider = CiderD(ended, frequencies=DocumentFrequencies.of(ended.values()))
    found = rewards(["b.jpg", "c.jpg"], [[5, 4, END], [5], [4, END], [END]])
    expected = [
        cider.score(["two", "one", "<end>"], "b.jpg"),
        cider.score(["two"], "b.jpg"),
        cider.score(["one", "<end>"], "c.jpg"),
        cider.score(["<end>"], "c.jpg"),
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_caption_that_breaks_off_is_worth_less(
    images: list[CaptionedImage], vocabulary: Vocabulary
) -> None:
    rewards = Rewards(images, vocabulary, bleu_weight=0.0)
    whole, broken = rewards(["b.jpg"], [[5, 4, END], [5, 4]]).tolist()
    assert whole > broken > 0.0


def test_bleu_counts_what_it_is_told(images: list[CaptionedImage], vocabulary: Vocabulary) -> None:
    captions = [[4, 5, 4, 5, END], [4, END]]
    without = Rewards(images, vocabulary, bleu_weight=0.0)(["a.jpg"], captions)
    with_bleu = Rewards(images, vocabulary, bleu_weight=2.0)(["a.jpg"], captions)
    torch.testing.assert_close(with_bleu - without, torch.tensor([2.0, 0.0]), atol=1e-3, rtol=0.0)


def test_what_is_to_be_expected_is_rewarded_too(
    images: list[CaptionedImage], vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showtell.training.left_out.LEAST_IMAGES", 1)
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    ids, captions = ["b.jpg", "a.jpg"], [[5, 4, END], [4, END], [4, 5, END], [5, END]]
    plain = Rewards(images, vocabulary, bleu_weight=0.0)(ids, captions)
    rewards = Rewards(images, vocabulary, bleu_weight=0.0)
    rewards.expect([features], weight=2.0)
    objective = settings(expected_weight=2.0).on(images, vocabulary, lambda: [features])
    references = [
        [(*vocabulary.encode(c.split()), END) for c in image.captions] for image in images
    ]
    left_out = LeftOut(list(CAPTIONS), references, [features])
    expected = [*left_out("b.jpg", captions[:2]), *left_out("a.jpg", captions[2:])]
    for found in (rewards, objective._rewards):
        torch.testing.assert_close(found(ids, captions), plain + 2 * torch.tensor(expected))
    with pytest.raises(ValueError, match="expected_weight must be at least 0"):
        settings(expected_weight=-1.0)
    with pytest.raises(ValueError, match="expected_weight must be at least 0, and finite"):
        settings(bleu_weight=math.nan)


def all_captions() -> list[tuple[int, ...]]:
    """What can be drawn and comes to its end."""
    return [
        (*words, END) for n in range(LONGEST + 1) for words in itertools.product((4, 5), repeat=n)
    ]


def log_probability(decoder: LSTMDecoder, features: Tensor, caption: tuple[int, ...]) -> Tensor:
    """Of a caption of one image (1, D), of what can be drawn; step by step."""
    state, total, last = decoder.start(features), torch.zeros(()), BEGIN
    for token in caption:
        scores, state = decoder.step(torch.tensor([last]), state)
        allowed = scores[0].clone()
        allowed[[PAD, BEGIN, UNKNOWN]] = -torch.inf
        total, last = total + torch.log_softmax(allowed, 0)[token], token
    return total


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_the_gradient_is_that_of_the_expected_reward(
    images: list[CaptionedImage], vocabulary: Vocabulary, decoder: LSTMDecoder, baseline: str
) -> None:
    """A baseline lowers the variance and leaves the mean; enumeration gives the mean exactly.

    The loss is a mean over positions, whose number differs from draw to draw: it is taken out.
    """
    torch.manual_seed(0)
    given, parameters = batch(vocabulary), list(decoder.parameters())
    rewards = Rewards(images, vocabulary, bleu_weight=0.0)
    expected = torch.zeros(())
    for image, image_id in enumerate(given.image_ids):
        features = given.features[image : image + 1]
        for caption in all_captions():
            probability = log_probability(decoder, features, caption).exp()
            # Cut captions stand for all that would have gone on.
            expected = expected + probability * rewards([image_id], [caption]).item()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(expected, parameters)])

    objective = settings(baseline=baseline, samples=400).on(images, vocabulary, list)
    found = torch.zeros_like(exact)
    for _ in range(10):
        outcome = objective(decoder, given, 0.0)
        loss = outcome.loss * outcome.positions / 400 / 10
        gradients = torch.autograd.grad(loss, parameters)
        found -= torch.cat([g.flatten() for g in gradients])
    assert torch.cosine_similarity(found, exact, dim=0) > 0.98
    assert found.norm() / exact.norm() == pytest.approx(1.0, abs=0.1)


def test_samples_are_drawn_without_dropout_and_learned_with_it(
    images: list[CaptionedImage], vocabulary: Vocabulary, decoder: LSTMDecoder
) -> None:
    modes = []
    forward = decoder.forward
    decoder.forward = lambda *a: (modes.append(decoder.training), forward(*a))[1]  # type: ignore
    start = decoder.start
    decoder.start = lambda f: (modes.append(decoder.training), start(f))[1]  # type: ignore
    decoder.train()
    settings().on(images, vocabulary, list)(decoder, batch(vocabulary), 0.0)
    assert modes[0] is False and modes[-1] is True and decoder.training


def test_the_same_seed_draws_the_same(
    images: list[CaptionedImage], vocabulary: Vocabulary, decoder: LSTMDecoder
) -> None:
    objective = settings().on(images, vocabulary, list)
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(objective(decoder, batch(vocabulary), 0.0).loss.item())
    assert losses[0] == losses[1]


def test_the_reward_rises(
    images: list[CaptionedImage], vocabulary: Vocabulary, decoder: LSTMDecoder
) -> None:
    torch.manual_seed(0)
    given, objective = batch(vocabulary), settings(samples=8).on(images, vocabulary, list)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    measured = []
    for _ in range(60):
        outcome = objective(decoder, given, 0.0)
        measured.append(outcome.measure.item())
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
    assert sum(measured[-10:]) > 1.5 * sum(measured[:10])


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 1}, {"samples": 0, "baseline": "greedy"}, {"bleu_weight": -1}, {"max_length": 0}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        settings(**wrong)
