"""Beam search against enumeration of every caption, and against plain greedy search."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from showtell.decoding.beam import BeamSearch
from showtell.models.lstm import LSTMDecoder
from showtell.models.merge import MergeDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN

VOCABULARY = 7
FEATURES = 5


def lstm(seed: int) -> LSTMDecoder:
    torch.manual_seed(seed)
    decoder = LSTMDecoder(
        vocabulary_size=VOCABULARY,
        feature_size=FEATURES,
        vector_width=4,
        embedding_width=None,
        hidden_size=6,
        dense_size=6,
        image_dropout=0.0,
        word_dropout=0.0,
        output_dropout=0.0,
    ).eval()
    # Untrained scores are nearly flat; spread them so that searches can go wrong.
    for parameter in decoder.parameters():
        parameter.data.mul_(3.0)
    return decoder


def search(**changes: float) -> BeamSearch:
    settings = {"beam_size": 3, "min_length": 1, "max_length": 4, "length_penalty": 0.7}
    return BeamSearch(**{**settings, "allow_unknown": False, **changes})  # type: ignore[arg-type]


def log_probability(decoder: LSTMDecoder, features: Tensor, words: tuple[int, ...]) -> float:
    """Log probability of BEGIN words END, one step at a time."""
    state = decoder.start(features)
    total = 0.0
    for token, following in itertools.pairwise((BEGIN, *words, END)):
        scores, state = decoder.step(torch.tensor([token]), state)
        total += torch.log_softmax(scores, dim=-1)[0, following].item()
    return total


def enumerate_best(
    decoder: LSTMDecoder, features: Tensor, beam: BeamSearch
) -> tuple[tuple[int, ...], float]:
    writable = [i for i in range(VOCABULARY) if i not in (PAD, BEGIN, END, UNKNOWN)]
    captions = itertools.chain.from_iterable(
        itertools.product(writable, repeat=n) for n in range(beam.min_length, beam.max_length + 1)
    )
    rated = (
        (log_probability(decoder, features, c) / (len(c) + 1) ** beam.length_penalty, c)
        for c in captions
    )
    score, best = max(rated)
    return best, score


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
@torch.inference_mode()
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_captions(
    seed: int, length_penalty: float
) -> None:
    decoder, beam = lstm(seed), search(beam_size=130, length_penalty=length_penalty)
    features = torch.randn(3, FEATURES)
    for i, found in enumerate(beam(decoder, features)):
        best, score = enumerate_best(decoder, features[i : i + 1], beam)
        assert found.token_ids == best
        assert found.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
@torch.inference_mode()
def test_one_beam_is_greedy_search(seed: int) -> None:
    decoder = lstm(seed)
    features = torch.randn(4, FEATURES)
    for i, found in enumerate(search(beam_size=1, max_length=9)(decoder, features)):
        state, token, words = decoder.start(features[i : i + 1]), BEGIN, []
        while len(words) < 9:
            scores, state = decoder.step(torch.tensor([token]), state)
            scores[0, [PAD, BEGIN, UNKNOWN] + ([END] if not words else [])] = -torch.inf
            token = int(scores.argmax())
            if token == END:
                break
            words.append(token)
        assert list(found.token_ids) == words
        assert found.ended == (len(words) < 9)


@torch.inference_mode()
def test_company_and_order_of_images_change_nothing() -> None:
    decoder, beam = lstm(3), search(max_length=12)
    features = torch.randn(8, FEATURES)
    together = [h.token_ids for h in beam(decoder, features)]
    order = torch.randperm(8)
    shuffled = [h.token_ids for h in beam(decoder, features[order])]
    assert shuffled == [together[i] for i in order.tolist()]
    alone = [beam(decoder, features[i : i + 1])[0].token_ids for i in range(8)]
    assert alone == together


@torch.inference_mode()
def test_a_decoder_that_never_ends_still_gives_a_caption_and_says_so() -> None:
    decoder = lstm(0)
    decoder.output.bias[END] = -1e4
    for found in search(max_length=6)(decoder, torch.randn(2, FEATURES)):
        assert len(found.token_ids) == 6
        assert not found.ended


@torch.inference_mode()
def test_forbidden_words_and_lengths() -> None:
    decoder = lstm(1)
    decoder.output.bias[[PAD, BEGIN, UNKNOWN, END]] += 50.0
    for found in search(min_length=3, max_length=5)(decoder, torch.randn(4, FEATURES)):
        assert len(found.token_ids) == 3
        assert not {PAD, BEGIN, UNKNOWN, END} & set(found.token_ids)
    written = search(allow_unknown=True)(decoder, torch.randn(1, FEATURES))[0].token_ids
    assert UNKNOWN in written


@torch.inference_mode()
def test_a_wider_beam_serves_the_merge_decoder_too() -> None:
    torch.manual_seed(0)
    decoder = MergeDecoder(
        vocabulary_size=VOCABULARY,
        feature_size=FEATURES,
        vector_width=4,
        embedding_width=3,
        hidden_size=6,
        image_dropout=0.0,
        word_dropout=0.0,
        output_dropout=0.0,
    ).eval()
    features = torch.randn(2, FEATURES)
    greedy, wide = (search(beam_size=k)(decoder, features) for k in (1, 130))
    assert all(w.score >= g.score for w, g in zip(wide, greedy, strict=True))
