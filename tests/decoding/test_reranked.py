"""The comparison of whole captions, against every caption that could have been written."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_decoders import (
    FEATURES,
    MODELS,
    REGIONS,
    Make,
    Words,
    all_log_probs,
    attention,
    lstm,
    merge,
    pictures,
    transformer,
    updown,
)
from torch import Tensor

from showtell.decoding.beam import BeamSearch
from showtell.decoding.ensemble import Ensemble, Spans
from showtell.decoding.expected import ExpectedNgrams
from showtell.decoding.guidance import ExpectedCider
from showtell.decoding.reranked import RerankedBeamSearch
from showtell.text.vocabulary import END, UNKNOWN

WORDS = (4, 5, 6)
LENGTH_PENALTY = 0.7


def expectation(seed: int = 0, size: int = FEATURES) -> ExpectedNgrams:
    random = torch.Generator().manual_seed(seed)
    captions = [
        [
            [*(WORDS[i] for i in torch.randint(3, (length,), generator=random).tolist()), END]
            for length in (1, 2, 3)
        ]
        for _ in range(20)
    ]
    features = torch.randn(20, size, generator=random)
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


def rated(decoder: Any, features: Tensor) -> dict[Words, float]:
    """Every caption of one image with the score that the beam search would give it."""
    following = all_log_probs(decoder, features, 3)
    scores = {}
    for words in following:
        if words and UNKNOWN not in words:
            steps = [following[words[:at]][word] for at, word in enumerate((*words, END))]
            scores[words] = sum(steps) / len(steps) ** LENGTH_PENALTY
    return scores


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    ("weight", "word_reward", "guidance"),
    [(0.0, 0.0, 0.0), (1.0, 0.5, 0.0), (50.0, -1.0, 0.0), (1.0, 0.5, 3.0)],
)
@torch.inference_mode()
def test_it_finds_the_best_of_all_captions(
    make: Make, weight: float, word_reward: float, guidance: float
) -> None:
    decoder: Any = make(3)
    shape = (4, REGIONS, FEATURES) if decoder.feature_kind == "grid" else (4, FEATURES)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    reranked = search(weight=weight, word_reward=word_reward, guidance=guidance)
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


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@torch.inference_mode()
def test_company_changes_no_caption(guidance: float) -> None:
    decoder, features = lstm(2), torch.randn(6, FEATURES)
    narrow = search(beam_size=2, candidates=4, weight=5.0, max_length=6, guidance=guidance)
    together = narrow(decoder, features)
    alone = [narrow(decoder, features[i : i + 1])[0] for i in range(6)]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


@pytest.mark.parametrize("make", MODELS)
@torch.inference_mode()
def test_it_takes_the_best_of_what_the_guided_beam_finds(make: Make) -> None:
    decoder: Any = make(3)
    features = pictures(decoder, 6)
    pooled = features.mean(dim=1) if features.dim() == 3 else features
    reranked = search(beam_size=2, candidates=3, guidance=3.0, max_length=6)
    beam = BeamSearch(2, 1, 6, LENGTH_PENALTY, allow_unknown=False)
    several = beam.several(decoder, features, 3, ExpectedCider(expectation(), pooled, 3.0))
    captions = [[(*each.token_ids, END) for each in image] for image in several]
    worth = expectation().scores(pooled, captions)
    for found, image, expected in zip(reranked(decoder, features), several, worth, strict=True):
        totals = [h.score + reranked.weight * e for h, e in zip(image, expected, strict=True)]
        assert found.token_ids == image[totals.index(max(totals))].token_ids
    assert reranked(decoder, features) != replace(reranked, guidance=0.0)(decoder, features)


class TestPool:
    """The candidates that the members of an ensemble find, each on its own."""

    def best_by_hand(
        self, reranked: RerankedBeamSearch, members: list[Any], read: list[Tensor], seen: Tensor
    ) -> tuple[Words, float]:
        """The best caption of one image; each member reads its (1, ...) of ``read``."""
        options = ("beam_size", "min_length", "max_length", "length_penalty", "allow_unknown")
        beam = BeamSearch(**{name: getattr(reranked, name) for name in options})
        written: set[Words] = set()
        for member, features in zip(members, read, strict=True):
            guide = ExpectedCider(reranked.expected, seen, reranked.guidance)
            (found,) = beam.several(member, features, reranked.candidates, guide)
            written |= {each.token_ids for each in found}
        following = [all_log_probs(m, f, 3) for m, f in zip(members, read, strict=True)]
        totals = {}
        for words in written:
            ((expected,),) = reranked.expected.scores(seen, [[(*words, END)]])
            scores = [
                sum(own[words[:at]][word] for at, word in enumerate((*words, END)))
                / (len(words) + 1) ** LENGTH_PENALTY
                for own in following
            ]
            reward = reranked.word_reward * len(words)
            totals[words] = sum(scores) / len(scores) + reranked.weight * expected + reward
        best = max(totals, key=totals.__getitem__)
        return best, totals[best]

    @pytest.mark.parametrize("makes", [(lstm, lstm), (lstm, attention), MODELS])
    @pytest.mark.parametrize(
        ("beam_size", "candidates", "guidance"),
        [(1, 1, 0.0), (2, 4, 0.0), (2, 4, 3.0), (45, 39, 3.0)],
    )
    @torch.inference_mode()
    def test_it_is_the_best_of_what_any_member_finds(
        self, makes: tuple[Make, ...], beam_size: int, candidates: int, guidance: float
    ) -> None:
        members = [make(seed) for seed, make in enumerate(makes)]
        ensemble = Ensemble(members)
        reranked = search(
            **{"beam_size": beam_size, "candidates": candidates, "word_reward": 0.1, "pool": True},
            guidance=guidance,
        )
        features = pictures(ensemble, 6)
        is_grid = features.dim() == 3
        for i, found in enumerate(reranked(ensemble, features)):
            own = features[i : i + 1]
            mean = own.mean(dim=1) if is_grid else own
            read = [mean if member.feature_kind == "pooled" else own for member in members]
            best, total = self.best_by_hand(reranked, members, read, mean)
            assert found.token_ids == best
            assert found.score == pytest.approx(total, abs=1e-4)

    @pytest.mark.parametrize("makes", [(lstm, merge), (attention, transformer)])
    @torch.inference_mode()
    def test_each_member_reads_its_own_columns(self, makes: tuple[Make, ...]) -> None:
        members = [make(seed) for seed, make in enumerate(makes)]
        columns: list[Spans] = [[(0, FEATURES)], [(7, 10), (5, 7)]]
        ensemble = Ensemble(members, columns)
        shape = (4, 10) if ensemble.feature_kind == "pooled" else (4, REGIONS, 10)
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        options = {"beam_size": 2, "candidates": 4, "pool": True}
        reranked = search(**options).with_expected(expectation(size=10))
        for i, found in enumerate(reranked(ensemble, features)):
            own = features[i : i + 1]
            read = [own[..., :5], torch.cat([own[..., 7:], own[..., 5:7]], dim=-1)]
            seen = own.mean(dim=1) if own.dim() == 3 else own
            best, total = self.best_by_hand(reranked, members, read, seen)
            assert found.token_ids == best
            assert found.score == pytest.approx(total, abs=1e-4)

    @pytest.mark.parametrize("make", MODELS)
    @torch.inference_mode()
    def test_one_decoder_has_nothing_to_pool(self, make: Make) -> None:
        decoder = make(3)
        features = pictures(decoder, 5)
        apart, pooled = (
            search(beam_size=2, candidates=4, max_length=6, pool=pool) for pool in (False, True)
        )
        assert pooled(decoder, features) == apart(decoder, features)
        alone = Ensemble([decoder])
        assert pooled(alone, features) == apart(alone, features)

    @torch.inference_mode()
    def test_copies_of_one_decoder_write_what_it_writes(self) -> None:
        decoder = attention(3)
        features = pictures(decoder, 5)
        reranked = search(beam_size=2, candidates=4, max_length=6, pool=True)
        alone, together = reranked(decoder, features), reranked(Ensemble([decoder] * 3), features)
        assert [h.token_ids for h in together] == [h.token_ids for h in alone]
        assert [h.score for h in together] == pytest.approx([h.score for h in alone], abs=1e-4)
        assert [h.ended for h in together] == [h.ended for h in alone]

    @torch.inference_mode()
    def test_it_is_another_search_than_that_with_the_mean_of_the_members(self) -> None:
        ensemble = Ensemble([lstm(seed) for seed in range(3)])
        features = pictures(ensemble, 12)
        narrow = search(beam_size=1, candidates=1, weight=5.0)
        pooled, apart = replace(narrow, pool=True)(ensemble, features), narrow(ensemble, features)
        assert [h.token_ids for h in pooled] != [h.token_ids for h in apart]

    @torch.inference_mode()
    def test_the_order_of_members_and_the_company_of_images_change_nothing(self) -> None:
        members = [make(seed) for seed, make in enumerate((lstm, attention, updown))]
        features = pictures(Ensemble(members), 7)
        reranked = search(beam_size=2, candidates=4, weight=5.0, max_length=6, pool=True)
        expected = reranked(Ensemble(members), features)
        members_backwards = reranked(Ensemble(members[::-1]), features)
        images_backwards = reranked(Ensemble(members), features.flip(0))[::-1]
        alone = [reranked(Ensemble(members), features[i : i + 1])[0] for i in range(7)]
        for found in (members_backwards, images_backwards, alone):
            assert [h.token_ids for h in found] == [h.token_ids for h in expected]
            assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)

    @torch.inference_mode()
    def test_rules_hold_for_all_members_and_scores_stay_finite(self) -> None:
        members = [lstm(0), lstm(1)]
        members[0].output.bias[END] = -1e4  # writes as long as it may
        rules = {"no_repeat": 1, "min_length": 2}
        reranked = search(beam_size=2, candidates=4, pool=True, **rules)
        for found in reranked(Ensemble(members), pictures(members[0], 6)):
            assert len(set(found.token_ids)) == len(found.token_ids) >= 2
            assert math.isfinite(found.score)

    @torch.inference_mode()
    def test_equal_candidates_are_decided_by_the_order_in_which_they_were_found(self) -> None:
        """Every word is as likely as the others, and nothing is expected of any."""
        members = [lstm(0), lstm(1)]
        for member in members:
            for parameter in member.parameters():
                parameter.zero_()
        reranked = search(beam_size=3, candidates=3, weight=0.0, max_length=1, pool=True)
        features = pictures(members[0], 2)
        (first, second) = reranked(Ensemble(members), features)
        own = BeamSearch(3, 1, 1, LENGTH_PENALTY, allow_unknown=False)
        (found, _) = own.several(members[0], features, 3)
        assert len({each.score for each in found}) == 1
        assert first.token_ids == second.token_ids == found[0].token_ids


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
        ({"guidance": -1.0}, "guidance is a number from 0"),
        ({"guidance": math.inf}, "guidance is a number from 0"),
        ({"word_reward": math.inf}, "word_reward is a finite number"),
        ({"beam_size": 0}, "beam_size is at least 1"),
        ({"length_penalty": -1.0}, "negative length_penalty"),
    ],
)
def test_options_out_of_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**changes)
