"""The comparison of whole captions, against every caption that could have been written."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_decoders import FEATURES, MODELS, REGIONS, Make, all_log_probs, lstm
from torch import Tensor

from showtell.decoding.beam import BeamSearch
from showtell.decoding.expected import ExpectedNgrams
from showtell.decoding.reranked import RerankedBeamSearch
from showtell.text.vocabulary import END, UNKNOWN

WORDS = (4, 5, 6)
LENGTH_PENALTY = 0.7


def expectation(seed: int = 0) -> ExpectedNgrams:
    random = torch.Generator().manual_seed(seed)
    captions = [
        [
            [*(WORDS[i] for i in torch.randint(3, (length,), generator=random).tolist()), END]
            for length in (1, 2, 3)
        ]
        for _ in range(20)
    ]
    features = torch.randn(20, FEATURES, generator=random)
    return ExpectedNgrams.fit(captions, [features], least_images=1, rank=FEATURES)


def search(**changes: Any) -> RerankedBeamSearch:
    options: dict[str, Any] = {
        "beam_size": 45,  # as wide as the tree
        "min_length": 1,
        "max_length": 3,
        "length_penalty": LENGTH_PENALTY,
        "allow_unknown": False,
        "no_repeat": 0,
        "bad_endings": (),
        "candidates": 39,
        "weight": 1.0,
        "least_images": 1,
        "rank": FEATURES,
    }
    return RerankedBeamSearch(**{**options, **changes}).with_expected(expectation())


def rated(decoder: Any, features: Tensor) -> dict[tuple[int, ...], float]:
    """Every caption of one image with the score that the beam search would give it."""
    following = all_log_probs(decoder, features, 3)
    scores = {}
    for words in following:
        if words and UNKNOWN not in words:
            steps = [following[words[:at]][word] for at, word in enumerate((*words, END))]
            scores[words] = sum(steps) / len(steps) ** LENGTH_PENALTY
    return scores


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(("weight", "word_reward"), [(0.0, 0.0), (1.0, 0.5), (50.0, -1.0)])
@torch.inference_mode()
def test_it_finds_the_best_of_all_captions(make: Make, weight: float, word_reward: float) -> None:
    decoder: Any = make(3)
    shape = (4, REGIONS, FEATURES) if decoder.feature_kind == "grid" else (4, FEATURES)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    reranked = search(weight=weight, word_reward=word_reward)
    for i, found in enumerate(reranked(decoder, features)):
        own = rated(decoder, features[i : i + 1])
        assert len(own) == 3 + 9 + 27
        pooled = features[i : i + 1].mean(dim=1) if len(shape) == 3 else features[i : i + 1]
        (worth,) = expectation().scores(pooled, [[(*words, END) for words in own]])
        total = {
            words: own[words] + weight * e + word_reward * len(words)
            for words, e in zip(own, worth, strict=True)
        }
        assert found.token_ids == max(total, key=total.__getitem__)
        assert found.score == pytest.approx(total[found.token_ids], abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_several_are_the_best_captions_in_order(seed: int) -> None:
    decoder, features = lstm(seed), torch.randn(3, FEATURES)
    beam = BeamSearch(45, 1, 3, LENGTH_PENALTY, allow_unknown=False)
    for i, found in enumerate(beam.several(decoder, features, 39)):
        own = rated(decoder, features[i : i + 1])
        assert {each.token_ids for each in found} == set(own)
        assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
    best = beam(decoder, features)
    assert [each[0].token_ids for each in beam.several(decoder, features, 39)] == [
        each.token_ids for each in best
    ]


@pytest.mark.parametrize("count", [1, 3, 10])
@torch.inference_mode()
def test_a_narrow_beam_ends_as_many_as_are_asked_for(count: int) -> None:
    decoder, features = lstm(1), torch.randn(5, FEATURES)
    found = BeamSearch(3, 1, 9, LENGTH_PENALTY, allow_unknown=False).several(
        decoder, features, count
    )
    for image in found:
        # Fewer where the longest length ended all beams.
        assert len(image) == count or max(len(each.token_ids) for each in image) == 9
        assert len({each.token_ids for each in image}) == len(image)


@torch.inference_mode()
def test_company_changes_no_caption() -> None:
    decoder, features = lstm(2), torch.randn(6, FEATURES)
    narrow = search(beam_size=2, candidates=4, weight=5.0, max_length=6)
    together = narrow(decoder, features)
    alone = [narrow(decoder, features[i : i + 1])[0] for i in range(6)]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


def test_it_must_know_what_to_expect() -> None:
    with pytest.raises(ValueError, match="must be told"):
        replace(search(), expected=None)(lstm(0), torch.randn(1, FEATURES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "at least 1"),
        ({"rank": 0}, "at least 1"),
        ({"weight": -1.0}, "weight is a number from 0"),
        ({"weight": math.nan}, "weight is a number from 0"),
        ({"word_reward": math.inf}, "word_reward is a finite number"),
        ({"beam_size": 0}, "beam_size is at least 1"),
        ({"length_penalty": -1.0}, "negative length_penalty"),
    ],
)
def test_options_out_of_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**changes)
