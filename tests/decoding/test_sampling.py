"""Drawn captions against the exact probability of every caption."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_decoders import MODELS, VOCABULARY, Make, Words, all_log_probs, lstm, pictures
from torch import Tensor

from showtell.decoding import beam as beam_module
from showtell.decoding.beam import Batching, BeamSearch
from showtell.decoding.sampling import Samples, Sampling, draw, sample
from showtell.models.decoder import Decoder, State
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN

SPECIAL = (PAD, BEGIN, UNKNOWN)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def captions(samples: Samples) -> list[Words]:
    rows = zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)
    return [tuple(tokens[:length]) for tokens, length in rows]


def exact(decoder: Decoder, features: Tensor, max_length: int) -> dict[Words, float]:
    """The probability of every caption of one image, with END where it ends by itself."""
    found: dict[Words, float] = {}
    reached: dict[Words, float] = {(): 1.0}
    for words, log_probs in all_log_probs(decoder, features, max_length).items():
        if words not in reached:
            continue
        probs = [0.0 if i in SPECIAL else math.exp(p) for i, p in enumerate(log_probs)]
        found[(*words, END)] = reached[words] * probs[END] / sum(probs)
        for word in range(UNKNOWN + 1, VOCABULARY):
            if len(words) < max_length:
                reached[(*words, word)] = reached[words] * probs[word] / sum(probs)
            else:
                found[words] = found.get(words, 0.0) + reached[words] * probs[word] / sum(probs)
    assert sum(found.values()) == pytest.approx(1)
    return found


def chi_square(counts: dict[Words, int], expected: dict[Words, float]) -> float:
    """In standard deviations from its mean; what is expected less than five times is pooled."""
    total = sum(counts.values())
    cells = [(counts.get(w, 0), p * total) for w, p in expected.items() if p * total >= 5]
    rest = total - sum(c for c, _ in cells), total - sum(e for _, e in cells)
    cells += [rest] if rest[1] >= 5 else []
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    degrees = len(cells) - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_captions_are_drawn_as_often_as_they_are_probable(model: Make) -> None:
    decoder = model(1)
    features = pictures(decoder, 3)
    drawn = captions(sample(decoder, features, samples=3000, max_length=3, generator=seeded(0)))
    for i in range(3):
        expected = exact(decoder, features[i : i + 1], 3)
        found = drawn[3000 * i : 3000 * (i + 1)]
        assert set(found) <= set(expected)
        assert abs(chi_square({w: found.count(w) for w in set(found)}, expected)) < 4


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_log_probabilities_are_those_of_the_captions(model: Make) -> None:
    decoder = model(2)
    features = pictures(decoder, 1)
    found = sample(decoder, features, samples=50, max_length=3, generator=seeded(1))
    expected = exact(decoder, features, 3)
    for words, ended, log_prob in zip(
        captions(found), found.ended.tolist(), found.log_probs.tolist(), strict=True
    ):
        assert ended == (words[-1:] == (END,))
        # Of a caption that was cut off, the words alone: what would have followed is not in it.
        cut = sum(p for w, p in expected.items() if w[: len(words)] == words)
        assert log_prob == pytest.approx(math.log(expected[words] if ended else cut), abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("words", [1, 3, 30])
@torch.inference_mode()
def test_leaving_early_changes_no_caption(
    model: Make, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model(3)
    features = pictures(decoder, 5)
    expected = sample(decoder, features, samples=4, max_length=20, generator=seeded(2))
    monkeypatch.setattr(beam_module, "CPU_BATCHING", Batching(1, words))
    found = sample(decoder, features, samples=4, max_length=20, generator=seeded(2))
    assert captions(found) == captions(expected)
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-5)


class Counting:
    """A decoder that counts the rows of every step."""

    def __init__(self, decoder: Any, *, shared: bool) -> None:
        self.rows: list[int] = []
        self._decoder, self._shared = decoder, shared

    def start(self, features: Tensor) -> State:
        state: State = self._decoder.start(features)
        return state._replace(images=(features,)) if self._shared else state

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        self.rows.append(len(token_ids))
        scores, following = self._decoder.step(token_ids, state)
        return scores, following


@torch.inference_mode()
def test_nothing_is_computed_for_captions_that_have_ended() -> None:
    decoder = lstm(4)
    features = pictures(decoder, 6)
    counting = Counting(decoder, shared=False)
    found: Samples = sample(
        counting,  # type: ignore[arg-type]
        features,
        samples=5,
        max_length=30,
        generator=seeded(3),
    )
    assert found.ended.all()
    longest = int(found.lengths.max())
    assert counting.rows == [int((found.lengths > t).sum()) for t in range(longest)]
    # Where images share a part of the state, their groups stay equally wide.
    counting = Counting(decoder, shared=True)
    sample(counting, features, samples=5, max_length=30, generator=seeded(3))  # type: ignore[arg-type]
    live = [(found.lengths.view(6, 5) > t).sum(dim=1) for t in range(longest)]
    assert counting.rows == [int((count > 0).sum() * count.max()) for count in live]


@torch.inference_mode()
def test_a_seed_gives_the_same_captions_and_another_one_others() -> None:
    decoder = lstm(5)
    features = pictures(decoder, 4)

    def drawn(seed: int) -> list[Words]:
        return captions(sample(decoder, features, samples=5, max_length=9, generator=seeded(seed)))

    assert drawn(1) == drawn(1) != drawn(2)


def test_tokens_can_be_learned_from() -> None:
    decoder = lstm(6)
    found = sample(decoder, pictures(decoder, 2), samples=2, max_length=4, generator=seeded(4))
    decoder.embedding(found.tokens).sum().backward()
    assert found.tokens.dtype == torch.int64


def test_the_highest_number_draws_a_word_that_is_possible() -> None:
    scores = torch.full((2, 9), -torch.inf)
    scores[:, [END, 5, PAD, UNKNOWN]] = 1.0
    tokens, log_probs = draw(scores, torch.tensor([0.0, 1 - 2**-24]))
    assert tokens.tolist() == [END, 5]
    assert log_probs.tolist() == pytest.approx([-math.log(2)] * 2)


def test_no_image_needs_no_decoder() -> None:
    decoder = lstm(0)
    empty = pictures(decoder, 1)[:0]
    assert sample(decoder, empty, samples=2, max_length=3, generator=seeded(0)).tokens.shape == (
        0,
        4,
    )


def sampling(**changes: Any) -> Sampling:
    options = {"temperature": 1.0, "top_k": None, "top_p": None, "seed": 0, "min_length": 0}
    options |= {"max_length": 3, "allow_unknown": False, "no_repeat": 0, "bad_endings": []}
    return Sampling(**{**options, **changes})


def filtered(probs: list[float], options: Sampling) -> list[float]:
    """One distribution of words after temperature, top-k and nucleus, in plain lists."""
    weights = [0.0 if i in SPECIAL else p ** (1 / options.temperature) for i, p in enumerate(probs)]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[: options.top_k]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if options.top_p is not None and mass >= options.top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [w / total if i in kept else 0.0 for i, w in enumerate(weights)]


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 2},
    {"top_p": 0.7},
    {"temperature": 1.3, "top_k": 3, "top_p": 0.8},
]


@pytest.mark.parametrize("changes", FILTERS)
@torch.inference_mode()
def test_first_words_are_drawn_from_the_filtered_distribution(changes: dict[str, Any]) -> None:
    decoder, options = lstm(1), sampling(**changes)
    features = pictures(decoder, 2)
    for i, drawn in enumerate(options.several(decoder, features, 2000)):
        (first, *_) = all_log_probs(decoder, features[i : i + 1], 0).values()
        expected = filtered([math.exp(p) for p in first], options)
        words = [h.token_ids[0] if h.token_ids else END for h in drawn]
        counts = {(word,): words.count(word) for word in set(words)}
        cells = {(word,): p for word, p in enumerate(expected) if p}
        assert set(counts) <= set(cells)
        assert len(cells) == 1 or abs(chi_square(counts, cells)) < 4


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_an_image_gets_the_same_captions_in_any_company_and_number(model: Make) -> None:
    decoder, options = model(2), sampling(max_length=9, top_p=0.9)
    features = pictures(decoder, 6)
    together = options.several(decoder, features, 5)
    order = [3, 1, 5, 0]
    again = options.several(decoder, features[order], 5)
    assert [[h.token_ids for h in each] for each in again] == [
        [h.token_ids for h in together[i]] for i in order
    ]
    alone = options.several(decoder, features[2:3], 2)[0]
    assert [h.token_ids for h in alone] == [h.token_ids for h in together[2][:2]]
    first = options(decoder, features)
    assert [h.token_ids for h in first] == [each[0].token_ids for each in together]
    other = sampling(max_length=9, top_p=0.9, seed=1).several(decoder, features, 5)
    assert other != together


@torch.inference_mode()
def test_a_vanishing_temperature_and_a_single_word_are_greedy() -> None:
    decoder = lstm(3)
    features = pictures(decoder, 5)
    rules = {"min_length": 0, "max_length": 3, "allow_unknown": False}
    greedy = BeamSearch(beam_size=1, length_penalty=0.0, **rules)(decoder, features)
    for changes in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        found = sampling(**changes)(decoder, features)
        assert [h.token_ids for h in found] == [h.token_ids for h in greedy]


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        sampling(**changes)
