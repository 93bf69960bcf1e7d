"""Every rule, alone and together with others, against enumeration of all captions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_decoders import MODELS, VOCABULARY, Make, Words, all_log_probs, lstm, pictures

from showtell.decoding.beam import BeamSearch
from showtell.decoding.constraints import Constraints, WordIds
from showtell.decoding.diverse import DiverseBeamSearch
from showtell.decoding.sampling import Sampling
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary

RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "unknown": {"allow_unknown": True},
    "shortest": {"min_length": 3},
    "longest": {"max_length": 2},
    "one length": {"min_length": 3, "max_length": 3},
    "no word twice": {"no_repeat": 1},
    "no pair twice": {"no_repeat": 2, "min_length": 2},
    "endings": {"endings": (4, 6)},
    "one word again": {"repeatable": (5,), "min_length": 3},
    "no word again": {"repeatable": ()},
    "all": {"min_length": 2, "no_repeat": 2, "endings": (5,), "repeatable": (4,)}
    | {"allow_unknown": True},
    "run dry": {"min_length": 4, "no_repeat": 1},
    "run dry of words": {"min_length": 4, "repeatable": ()},
    "nothing may end": {"endings": (4, 5, 6), "max_length": 3},
}


def rules(**changes: Any) -> dict[str, Any]:
    usual = {"min_length": 1, "max_length": 4, "allow_unknown": False, "no_repeat": 0}
    return {**usual, "endings": (), "repeatable": None, **changes}


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Those of a search that has been told the ids of its words."""
    words = {"word_ids": WordIds(given["endings"], given["repeatable"]), "bad_endings": ["word"]}
    return {k: v for k, v in given.items() if k not in ("endings", "repeatable")} | words


def beam_search(beam_size: int, changes: dict[str, Any]) -> BeamSearch:
    return BeamSearch(beam_size=beam_size, length_penalty=0.7, **options(rules(**changes)))


def allowed(words: Words, given: dict[str, Any]) -> list[int]:
    """What may follow ``words``, rule by rule; a caption of the longest length ends."""
    following = [END, *range(UNKNOWN if given["allow_unknown"] else UNKNOWN + 1, VOCABULARY)]
    if len(words) < given["min_length"] or (words[-1:] and words[-1] in given["endings"]):
        following.remove(END)
    if len(words) == given["max_length"] - 1:
        following = [word for word in following if word not in given["endings"]]
    if n := given["no_repeat"]:
        runs = [words[i : i + n] for i in range(len(words) - n + 1)]
        following = [w for w in following if (*words, w)[-n:] not in runs or w == END]
    if given["repeatable"] is not None:
        following = [w for w in following if w not in words or w in given["repeatable"]]
    if len(words) == given["max_length"]:
        return [END]
    return following or [END]


def rate_all(log_probs: dict[Words, list[float]], given: dict[str, Any]) -> dict[Words, float]:
    """The score of every caption that may be written."""
    reached: dict[Words, float] = {(): 0.0}
    rated: dict[Words, float] = {}
    for words, following in log_probs.items():
        if words not in reached:
            continue
        for word in allowed(words, given):
            if word == END:
                rated[words] = (reached[words] + following[END]) / (len(words) + 1) ** 0.7
            else:
                reached[(*words, word)] = reached[words] + following[word]
    return rated


@pytest.mark.parametrize("name", RULES)
@torch.inference_mode()
def test_a_wide_beam_finds_the_best_of_all_captions_that_may_be_written(name: str) -> None:
    for seed, make in enumerate(MODELS[:3]):
        decoder, given = make(seed), rules(**RULES[name])
        features = pictures(decoder, 2)
        for i, found in enumerate(beam_search(300, RULES[name])(decoder, features)):
            log_probs = all_log_probs(decoder, features[i : i + 1], given["max_length"])
            rated = rate_all(log_probs, given)
            assert found.token_ids == max(rated, key=rated.__getitem__)
            assert found.score == pytest.approx(rated[found.token_ids], abs=1e-5)


@pytest.mark.parametrize("name", RULES)
@torch.inference_mode()
def test_every_search_writes_a_caption_that_may_be_written(name: str) -> None:
    given = rules(**RULES[name])
    searches = [
        beam_search(1, RULES[name]),
        beam_search(2, RULES[name]),
        DiverseBeamSearch(
            groups=2, beam_size=2, diversity=1.0, length_penalty=0.7, **options(given)
        ),
        Sampling(temperature=1.5, top_k=None, top_p=0.9, seed=1, **options(given)),
    ]
    for make in MODELS:
        decoder = make(7)
        features = pictures(decoder, 6)
        writable = rate_all(all_log_probs(decoder, features[:1], given["max_length"]), given)
        for search in searches:
            for found in search(decoder, features):
                cut_off = isinstance(search, Sampling) and not found.ended
                assert found.token_ids in writable or cut_off
                assert found.token_ids or name in ("nothing may end",)
                assert math.isfinite(found.score)


@torch.inference_mode()
def test_what_has_no_probability_may_not_follow() -> None:
    given = rules(no_repeat=2, endings=(5,), repeatable=(4, 5), min_length=2)
    rule = Constraints(**given)
    for words in ([], [4], [4, 5], [6, 4], [4, 4, 4], [5, 4, 5], [4, 5, 6, 4]):
        scores = torch.zeros(1, VOCABULARY)
        rule.forbid(scores, torch.tensor([words], dtype=torch.long))
        if len(words) < 4:  # then the search ends it
            assert scores[0].isfinite().nonzero().flatten().tolist() == sorted(
                allowed(tuple(words), given)
            )
        assert not scores[0, [PAD, BEGIN, UNKNOWN]].isfinite().any()


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ({"bad_endings": ["dog", "the", "cat"]}, ((4, 5), None)),
        ({"repeatable": ["dog", "the"]}, ((), (4,))),
        ({"repeatable": []}, ((), ())),
    ],
)
def test_words_have_to_be_known_before_they_can_be_rules(
    words: dict[str, list[str]], ids: tuple[tuple[int, ...], tuple[int, ...] | None]
) -> None:
    decoder = lstm(0)
    search = BeamSearch(
        beam_size=2, min_length=1, max_length=4, length_penalty=0.0, allow_unknown=False, **words
    )
    with pytest.raises(ValueError, match="with_vocabulary"):
        search(decoder, pictures(decoder, 1))
    vocabulary = Vocabulary(["the", "cat", "runs"], min_count=1, counts=[3, 2, 1])
    assert search.with_vocabulary(vocabulary).word_ids == ids


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"no_repeat": -1}, "no_repeat is a number of words"),
        ({"min_length": 5}, "0 <= min_length <= max_length"),
        ({"max_length": 0, "min_length": 0}, "1 <= max_length"),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        beam_search(2, changes)
    with pytest.raises(ValueError, match=sentence):
        Sampling(temperature=1.0, top_k=None, top_p=None, seed=0, **options(rules(**changes)))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="length_penalty is a finite number"):
        replace(beam_search(2, {}), length_penalty=number)
    drawn = Sampling(temperature=1.0, top_k=None, top_p=None, seed=0, **options(rules()))
    with pytest.raises(ValueError, match="temperature is at least 1e-06 and finite"):
        replace(drawn, temperature=number)
    with pytest.raises(ValueError, match="diversity is at least 0 and finite"):
        DiverseBeamSearch(
            groups=2, beam_size=2, diversity=number, length_penalty=0.7, **options(rules())
        )


def test_the_models_are_all_here() -> None:
    makes: tuple[Make, ...] = MODELS
    assert len(makes) >= 4
