"""What a decoder thinks of given captions, against its steps and against its beam search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import MODELS, Make, Words, all_log_probs, lstm, pictures

from showtell.decoding import rescoring
from showtell.decoding.beam import BeamSearch
from showtell.decoding.rescoring import log_probs_of
from showtell.text.vocabulary import END, UNKNOWN

# Of three images, not equally many and not equally long; one twice, one with UNKNOWN.
CAPTIONS: list[list[Words]] = [
    [(4, END), (4, 5, 6, END), (4, END)],
    [(6, 6, END)],
    [(5, UNKNOWN, 4, END), (END,), (6, END), (5, 4, END)],
]


@pytest.mark.parametrize("make", MODELS)
@torch.inference_mode()
def test_it_is_the_product_over_the_words_and_the_end(make: Make) -> None:
    decoder = make(3)
    features = pictures(decoder, 3)
    found = log_probs_of(decoder, features, CAPTIONS)
    for i, (captions, log_probs) in enumerate(zip(CAPTIONS, found, strict=True)):
        following = all_log_probs(decoder, features[i : i + 1], 3)
        by_step = [
            sum(following[words[:at]][word] for at, word in enumerate(words)) for words in captions
        ]
        assert log_probs == pytest.approx(by_step, abs=1e-5)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    "rules", [{}, {"no_repeat": 1}, {"min_length": 3, "allow_unknown": True}, {"max_length": 2}]
)
@torch.inference_mode()
def test_it_is_what_the_beam_search_divides_by_the_length(make: Make, rules: Any) -> None:
    """Also where rules forbid words, or the longest length cuts a caption off."""
    decoder = make(4)
    features = pictures(decoder, 5)
    options = {"min_length": 1, "max_length": 8, "allow_unknown": False, **rules}
    several = BeamSearch(beam_size=3, length_penalty=0.7, **options).several(decoder, features, 6)
    captions = [[(*each.token_ids, END) for each in image] for image in several]
    found = log_probs_of(decoder, features, captions)
    for image, log_probs in zip(several, found, strict=True):
        scores = [
            log_prob / (len(each.token_ids) + 1) ** 0.7
            for each, log_prob in zip(image, log_probs, strict=True)
        ]
        assert scores == pytest.approx([each.score for each in image], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("rows", [1, 5, 8])
@torch.inference_mode()
def test_company_changes_nothing(make: Make, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make(3)
    features = pictures(decoder, 3)
    together = log_probs_of(decoder, features, CAPTIONS)
    monkeypatch.setattr(rescoring, "_ROWS", rows)
    grouped = log_probs_of(decoder, features, CAPTIONS)
    backwards = log_probs_of(decoder, features.flip(0), CAPTIONS[::-1])[::-1]
    alone = [
        [log_probs_of(decoder, features[i : i + 1], [[words]])[0][0] for words in captions]
        for i, captions in enumerate(CAPTIONS)
    ]
    for found in (grouped, backwards, alone):
        for one, other in zip(found, together, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_no_images_have_no_captions() -> None:
    assert log_probs_of(lstm(0), torch.zeros(0, 5), []) == []
