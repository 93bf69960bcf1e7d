"""Diverse beam search against the same search in plain lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_decoders import MODELS, VOCABULARY, Make, lstm, pictures
from torch import Tensor

from showtell.decoding import beam as beam_module
from showtell.decoding.beam import Batching, BeamSearch
from showtell.decoding.diverse import DiverseBeamSearch
from showtell.models.decoder import State, StepDecoder
from showtell.text.vocabulary import BEGIN, END, UNKNOWN

RULES: dict[str, Any] = {"min_length": 1, "max_length": 6, "length_penalty": 0.7}
RULES |= {"allow_unknown": False, "no_repeat": 0, "bad_endings": []}


def diverse(**changes: Any) -> DiverseBeamSearch:
    options = {"groups": 3, "beam_size": 2, "diversity": 0.7, **RULES, **changes}
    return DiverseBeamSearch(**options)


Live = tuple[float, tuple[int, ...], State]  # log probability, words, state


def longer(decoder: StepDecoder, live: Live, search: DiverseBeamSearch) -> Iterator[Live]:
    """A caption with each word that may follow."""
    log_prob, tokens, state = live
    scores, following = decoder.step(torch.tensor([tokens[-1] if tokens else BEGIN]), state)
    log_probs = torch.log_softmax(scores[0], dim=0).tolist()
    allowed = list(range(UNKNOWN + 1, VOCABULARY)) if len(tokens) < search.max_length else []
    for word in allowed + ([END] if len(tokens) >= search.min_length else []):
        yield log_prob + log_probs[word], (*tokens, word), following


def one_image(
    decoder: StepDecoder, features: Tensor, search: DiverseBeamSearch
) -> list[tuple[tuple[int, ...], float]]:
    """The best caption of each group and its score, for ``features`` (1, ...)."""
    size, last_norm = search.beam_size, (search.max_length + 1) ** search.length_penalty
    groups: list[list[Live]] = [[(0.0, (), decoder.start(features))] for _ in range(search.groups)]
    ended: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(search.groups)]
    for words in range(search.max_length + 1):
        taken: Counter[int] = Counter()
        for group, live in enumerate(groups):
            found = [each for caption in live for each in longer(decoder, caption, search)]
            found.sort(key=lambda c: search.diversity * taken[c[1][-1]] * (c[1][-1] != END) - c[0])
            norm = (words + 1) ** search.length_penalty
            ended[group] += [(c[0] / norm, c[1][:-1]) for c in found[:size] if c[1][-1] == END]
            ended[group] = sorted(ended[group], key=lambda c: -c[0])[:size]
            groups[group] = [c for c in found if c[1][-1] != END][:size]
            taken.update(c[1][-1] for c in groups[group])
        for group, live in enumerate(groups):
            bound = max((c[0] for c in live), default=-torch.inf) / last_norm
            best = ended[group][0][0] if ended[group] else -torch.inf
            if len(ended[group]) == size or best >= bound:
                groups[group] = []
    return [(group[0][1], group[0][0]) for group in ended]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("changes", [{}, {"groups": 4, "beam_size": 1, "diversity": 2.0}])
@torch.inference_mode()
def test_it_is_the_plain_search_of_every_image(model: Make, changes: dict[str, Any]) -> None:
    decoder, search = model(2), diverse(**changes)
    features = pictures(decoder, 5)
    best = search(decoder, features)
    for i, found in enumerate(search.by_group(decoder, features)):
        expected = one_image(decoder, features[i : i + 1], search)
        assert [h.token_ids for h in found] == [words for words, _ in expected]
        assert [h.score for h in found] == pytest.approx([s for _, s in expected], abs=1e-5)
        assert best[i].score == max(h.score for h in found)


@torch.inference_mode()
def test_one_group_is_beam_search_and_so_is_the_first_of_several() -> None:
    decoder = lstm(3)
    features = pictures(decoder, 6)
    plain = BeamSearch(beam_size=2, **RULES)(decoder, features)
    assert diverse(groups=1)(decoder, features) == plain
    first = [groups[0] for groups in diverse().by_group(decoder, features)]
    assert [h.token_ids for h in first] == [h.token_ids for h in plain]


@torch.inference_mode()
def test_groups_write_other_captions_the_more_diversity_is_asked_for() -> None:
    decoder = lstm(4)
    features = pictures(decoder, 12)

    def different(diversity: float) -> int:
        found = diverse(groups=4, beam_size=1, diversity=diversity).by_group(decoder, features)
        return sum(len({h.token_ids for h in groups}) for groups in found)

    assert different(0.0) == 12 < different(1.0) <= different(50.0)


@pytest.mark.parametrize("batching", [Batching(1, 1), Batching(13, 2), Batching(64, 20)])
@torch.inference_mode()
def test_company_and_batching_change_nothing(
    batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, search = lstm(5), diverse()
    features = pictures(decoder, 7)
    expected = search(decoder, features)
    monkeypatch.setattr(beam_module, "CPU_BATCHING", batching)
    found = search(decoder, features.flip(0))[::-1]
    assert [h.token_ids for h in found] == [h.token_ids for h in expected]


@pytest.mark.parametrize("changes", [{"groups": 0}, {"beam_size": 0}, {"diversity": -1.0}])
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        diverse(**changes)


def test_no_image_needs_no_decoder() -> None:
    decoder = lstm(0)
    assert diverse()(decoder, pictures(decoder, 1)[:0]) == []
