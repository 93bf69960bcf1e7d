"""Decoders that write together, against the mean of what each thinks of every caption."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from tiny_decoders import (
    MODELS,
    VOCABULARY,
    Make,
    Words,
    all_log_probs,
    attention,
    lstm,
    merge,
    pictures,
    updown,
)
from torch import Tensor

from showtell.decoding.beam import BeamSearch
from showtell.decoding.ensemble import Ensemble
from showtell.decoding.sampling import sample
from showtell.text.vocabulary import END, UNKNOWN

MIXTURES = [*combinations(MODELS[:4], 2), (lstm, lstm), MODELS]


def search(beam_size: int, length_penalty: float = 0.7) -> BeamSearch:
    return BeamSearch(
        beam_size=beam_size,
        min_length=1,
        max_length=3,
        length_penalty=length_penalty,
        allow_unknown=False,
    )


def members_of(makes: tuple[Make, ...]) -> list[Any]:
    return [make(seed) for seed, make in enumerate(makes)]


def fed(member: Any, features: Tensor) -> Tensor:
    """What a member reads of the features of its ensemble."""
    return (
        features.mean(dim=1)
        if member.feature_kind == "pooled" and features.dim() == 3
        else features
    )


def mean_log_probs(members: list[Any], features: Tensor, longest: int) -> dict[Words, list[float]]:
    """As `all_log_probs`, of the geometric mean of the members' probabilities."""
    each = [all_log_probs(member, fed(member, features), longest) for member in members]
    found = {}
    for words in each[0]:
        means = [
            sum(log_probs) / len(each)
            for log_probs in zip(*(one[words] for one in each), strict=True)
        ]
        total = math.log(sum(math.exp(mean) for mean in means))
        found[words] = [mean - total for mean in means]
    return found


def rate_all(log_probs: dict[Words, list[float]], beam: BeamSearch) -> dict[Words, float]:
    """The score of every caption that the search may write."""
    reached, rated = {(): 0.0}, {}
    for words, following in log_probs.items():
        if UNKNOWN in words:
            continue
        if words:
            reached[words] = reached[words[:-1]] + log_probs[words[:-1]][words[-1]]
            rated[words] = (reached[words] + following[END]) / (
                len(words) + 1
            ) ** beam.length_penalty
    return rated


@pytest.mark.parametrize("makes", MIXTURES)
@torch.inference_mode()
def test_a_wide_beam_finds_the_best_caption_under_the_mean(makes: tuple[Make, ...]) -> None:
    members = members_of(makes)
    ensemble, beam = Ensemble(members), search(40)
    features = pictures(ensemble, 3)
    for i, found in enumerate(beam(ensemble, features)):
        rated = rate_all(mean_log_probs(members, features[i : i + 1], 3), beam)
        assert len(rated) == 3 + 9 + 27
        assert found.token_ids == max(rated, key=rated.__getitem__)
        assert found.score == pytest.approx(rated[found.token_ids], abs=1e-5)


def test_it_reads_the_grid_where_a_member_does_and_gives_others_its_mean() -> None:
    assert Ensemble([lstm(0), merge(0)]).feature_kind == "pooled"
    assert Ensemble([lstm(0), updown(0)]).feature_kind == "grid"
    ensemble = Ensemble([lstm(0), attention(0)])
    features = pictures(ensemble, 2)
    found = ensemble.start(features)
    alone = ensemble.members[0].start(features.mean(dim=1))
    assert all(torch.equal(a, b) for a, b in zip(found.rows, alone.rows, strict=False))


@pytest.mark.parametrize("make", MODELS)
@torch.inference_mode()
def test_copies_of_one_decoder_write_what_it_writes(make: Make) -> None:
    decoder = make(3)
    features = pictures(decoder, 5)
    beam = search(3)
    alone, together = beam(decoder, features), beam(Ensemble([decoder] * 3), features)
    assert [h.token_ids for h in together] == [h.token_ids for h in alone]
    assert [h.score for h in together] == pytest.approx([h.score for h in alone], abs=1e-5)


@torch.inference_mode()
def test_the_order_of_members_and_the_company_of_images_change_nothing() -> None:
    members = members_of(MODELS)
    beam = search(3)
    features = pictures(Ensemble(members), 7)
    expected = beam(Ensemble(members), features)
    backwards = beam(Ensemble(members[::-1]), features)
    alone = [beam(Ensemble(members), features[i : i + 1])[0] for i in range(7)]
    for found in (backwards, alone):
        assert [h.token_ids for h in found] == [h.token_ids for h in expected]


@torch.inference_mode()
def test_words_that_all_members_think_impossible_can_still_be_compared() -> None:
    members = [lstm(0), lstm(1)]
    for member in members:
        member.output.bias[END] = -1e4
    for found in search(3)(Ensemble(members), pictures(members[0], 2)):
        assert len(found.token_ids) == 3
        assert math.isfinite(found.score)


@torch.inference_mode()
def test_captions_are_drawn_from_an_ensemble_too() -> None:
    members = [lstm(0), attention(1)]
    features = pictures(Ensemble(members), 1)
    seed = torch.Generator().manual_seed(0)
    found = sample(Ensemble(members), features, samples=2000, max_length=2, generator=seed)
    (first, *_) = mean_log_probs(members, features, 0).values()
    possible = [END, *range(UNKNOWN + 1, VOCABULARY)]
    total = sum(math.exp(first[word]) for word in possible)
    for word in possible:
        share = float((found.tokens[:, 0] == word).float().mean())
        assert share == pytest.approx(math.exp(first[word]) / total, abs=4 * math.sqrt(0.25 / 2000))


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
