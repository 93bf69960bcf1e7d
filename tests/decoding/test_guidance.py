"""Searches that follow the expected CIDEr, against its definition and a plain search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import FEATURES, MODELS, Make, Words, all_log_probs, lstm, pictures
from torch import Tensor

from showtell.decoding import beam as beam_module
from showtell.decoding.beam import Batching, BeamSearch
from showtell.decoding.expected import ExpectedNgrams
from showtell.decoding.guidance import ExpectedCider
from showtell.text.vocabulary import END

WORDS = (4, 5, 6)
LENGTH_PENALTY = 0.7
MAX_LENGTH = 5


def expectation(least_images: int = 1, size: int = FEATURES) -> ExpectedNgrams:
    """Fitted to 20 made images; no caption has the words from 7 on."""
    random = torch.Generator().manual_seed(0)
    captions = [
        [
            [*(WORDS[i] for i in torch.randint(3, (length,), generator=random).tolist()), END]
            for length in (1, 3, 5)
        ]
        for _ in range(20)
    ]
    features = torch.randn(20, size, generator=random)
    return ExpectedNgrams.fit(captions, [features], least_images=least_images, rank=FEATURES)


@pytest.mark.parametrize("least_images", [1, 4, 21])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_it_is_the_expected_cider_of_every_caption(least_images: int, length: int) -> None:
    """With words that occur twice, with unknown ones, and where no n-gram is known at all."""
    expected = expectation(least_images)
    random = torch.Generator().manual_seed(length)
    features = torch.randn(5, FEATURES, generator=random)
    # Larger than all known words; 8 + 4 would be the key of the next node and word 4.
    words = torch.tensor([*WORDS, END, 7, 8, 12])
    tokens = words[torch.randint(len(words), (3, 40, length), generator=random)]
    images = torch.tensor([4, 0, 3])
    found = ExpectedCider(expected, features, weight=2.5)(images, tokens)
    one_by_one = expected.scores(features[images], tokens.tolist())
    torch.testing.assert_close(found, 2.5 * torch.tensor(one_by_one))
    if least_images == 21:
        assert not found.any()
    else:
        assert found.abs().max() > 0.1


def by_loops(
    decoder: Any, features: Tensor, expected: ExpectedNgrams, weight: float, size: int, count: int
) -> list[Words]:
    """The captions that a guided search of one image finds, best first, by plain loops."""
    following = all_log_probs(decoder, features, MAX_LENGTH)
    seen = features.mean(dim=1) if features.dim() == 3 else features
    beams: list[tuple[float, Words]] = [(0.0, ())]
    ended: list[tuple[float, Words]] = []
    for words in range(MAX_LENGTH + 1):
        allowed = [*(WORDS if words < MAX_LENGTH else ()), *([END] if words else [])]
        offers = [
            (log_prob + following[prefix][word], (*prefix, word))
            for log_prob, prefix in beams
            for word in allowed
        ]
        offers = sorted(offers, reverse=True)[: beam_module.OFFERED * size]
        norm = (words + 1) ** LENGTH_PENALTY
        (worth,) = expected.scores(seen, [[caption for _, caption in offers]])
        totals = [o[0] / norm + weight * e for o, e in zip(offers, worth, strict=True)]
        ranked = [offers[i] for i in sorted(range(len(offers)), key=lambda i: -totals[i])]
        ended += [(each[0] / norm, each[1][:-1]) for each in ranked[:size] if each[1][-1] == END]
        beams = [each for each in ranked if each[1][-1] != END][:size]
        if len(ended) >= count or not beams:
            break
    return [caption for _, caption in sorted(ended, reverse=True)[:count]]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 3), (2, 2), (2, 5), (3, 10)])
@pytest.mark.parametrize(("weight", "offered"), [(0.3, 4), (3.0, 4), (3.0, 2)])
@torch.inference_mode()
def test_it_is_the_search_by_plain_loops(
    make: Make,
    size: int,
    count: int,
    weight: float,
    offered: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beam_module, "OFFERED", offered)
    decoder: Any = make(3)
    features, expected = pictures(decoder, 4), expectation()
    seen = features.mean(dim=1) if features.dim() == 3 else features
    beam = BeamSearch(size, 1, MAX_LENGTH, LENGTH_PENALTY, allow_unknown=False)
    found = beam.several(decoder, features, count, ExpectedCider(expected, seen, weight))
    for i, hypotheses in enumerate(found):
        own = by_loops(decoder, features[i : i + 1], expected, weight, size, count)
        assert [each.token_ids for each in hypotheses] == own


@torch.inference_mode()
def test_scores_are_those_of_the_decoder_alone() -> None:
    decoder, features, expected = lstm(1), torch.randn(3, FEATURES), expectation()
    beam = BeamSearch(2, 1, MAX_LENGTH, LENGTH_PENALTY, allow_unknown=False)
    guided = beam.several(decoder, features, 4, ExpectedCider(expected, features, 3.0))
    for i, hypotheses in enumerate(guided):
        following = all_log_probs(decoder, features[i : i + 1], MAX_LENGTH)
        for each in hypotheses:
            words = each.token_ids
            log_prob = sum(following[words[:t]][w] for t, w in enumerate((*words, END)))
            score = log_prob / (len(words) + 1) ** LENGTH_PENALTY
            assert each.score == pytest.approx(score, abs=1e-4)


@torch.inference_mode()
def test_it_finds_what_the_decoder_alone_would_not_follow() -> None:
    decoder, features, expected = lstm(0), torch.randn(50, FEATURES), expectation()
    beam = BeamSearch(1, 1, MAX_LENGTH, LENGTH_PENALTY, allow_unknown=False)
    plain = beam.several(decoder, features, 1)
    guided = beam.several(decoder, features, 1, ExpectedCider(expected, features, 3.0))
    pairs = zip(plain, guided, strict=True)
    captions = [[(*found.token_ids, END) for (found,) in pair] for pair in pairs]
    worth = torch.tensor(expected.scores(features, captions))
    assert (worth[:, 1] - worth[:, 0]).mean() > 0.05
    of_nothing = ExpectedCider(expected, features, 0.0)
    assert beam.several(decoder, features, 1, of_nothing) == plain


@pytest.mark.parametrize("batching", [Batching(1, 1), Batching(4, 3), Batching(6, 1)])
@torch.inference_mode()
def test_the_batching_changes_no_caption(
    batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, features, expected = lstm(2), torch.randn(7, FEATURES), expectation()
    guide = ExpectedCider(expected, features, 3.0)
    beam = BeamSearch(2, 1, MAX_LENGTH, LENGTH_PENALTY, allow_unknown=False)
    together = beam.several(decoder, features, 3, guide)
    monkeypatch.setattr(beam_module, "CPU_BATCHING", batching)
    apart = beam.several(decoder, features, 3, guide)
    assert [[h.token_ids for h in each] for each in apart] == [
        [h.token_ids for h in each] for each in together
    ]


@pytest.mark.parametrize("make", MODELS)
@torch.inference_mode()
def test_rules_hold_and_captions_that_were_cut_off_say_so(make: Make) -> None:
    decoder: Any = make(1)
    features, expected = pictures(decoder, 20), expectation()
    seen = features.mean(dim=1) if features.dim() == 3 else features
    guide = ExpectedCider(expected, seen, 3.0)
    options: dict[str, Any] = {"length_penalty": LENGTH_PENALTY, "allow_unknown": False}
    short = BeamSearch(2, 0, 2, no_repeat=1, **options).several(decoder, features, 4, guide)
    for hypotheses in short:
        for each in hypotheses:
            assert len(set(each.token_ids)) == len(each.token_ids) <= 2
    never_ends: Any = lstm(0)
    never_ends.output.bias[END] = -1e4
    features = pictures(never_ends, 20)
    guide = ExpectedCider(expected, features, 3.0)
    for hypotheses in BeamSearch(2, 1, 4, **options).several(never_ends, features, 1, guide):
        assert [(len(each.token_ids), each.ended) for each in hypotheses] == [(4, False)]


@pytest.mark.gpu
@torch.inference_mode()
def test_a_gpu_finds_the_same_and_the_guide_does_not_wait_for_it() -> None:
    decoder, features, expected = lstm(2), torch.randn(20, FEATURES), expectation()
    beam = BeamSearch(2, 1, MAX_LENGTH, LENGTH_PENALTY, allow_unknown=False)
    here = beam.several(decoder, features, 4, ExpectedCider(expected, features, 3.0))
    guide = ExpectedCider(expected, features.cuda(), 3.0)
    there = beam.several(decoder.cuda(), features.cuda(), 4, guide)
    assert [[h.token_ids for h in each] for each in there] == [
        [h.token_ids for h in each] for each in here
    ]
    images, tokens = torch.arange(20).cuda(), torch.full((20, 8, 3), WORDS[0]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        guide(images, tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
