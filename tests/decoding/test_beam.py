"""Beam search against enumeration of every caption, and against plain searches of one image."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from showtell.decoding import beam as beam_module
from showtell.decoding.beam import Batching, BeamSearch, Hypothesis
from showtell.models.attention import AttentionDecoder
from showtell.models.decoder import Decoder, State
from showtell.models.lstm import LSTMDecoder
from showtell.models.merge import MergeDecoder
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN

VOCABULARY = 7
FEATURES = 5
SIZES: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "feature_size": FEATURES,
    "vector_width": 4,
    "embedding_width": 3,
    "hidden_size": 6,
    "image_dropout": 0.0,
    "word_dropout": 0.0,
    "output_dropout": 0.0,
}


def spread(decoder: Any) -> Any:
    """Untrained scores are nearly flat; spread them so that searches can go wrong."""
    for parameter in decoder.parameters():
        parameter.data.mul_(3.0)
    return decoder.eval()


def lstm(seed: int) -> LSTMDecoder:
    torch.manual_seed(seed)
    return spread(LSTMDecoder(**SIZES, dense_size=6))


def search(**changes: float) -> BeamSearch:
    settings = {"beam_size": 3, "min_length": 1, "max_length": 4, "length_penalty": 0.7}
    return BeamSearch(**{**settings, "allow_unknown": False, **changes})  # type: ignore[arg-type]


def rate_all(
    decoder: Decoder, features: Tensor, search: BeamSearch
) -> dict[tuple[int, ...], float]:
    """Every caption of one image the search may write, with its score."""
    writable = [i for i in range(VOCABULARY) if i not in (PAD, BEGIN, END, UNKNOWN)]
    rated: dict[tuple[int, ...], float] = {}
    prefixes: list[tuple[int, ...]] = [(BEGIN,)]
    log_probs, state = torch.zeros(1), decoder.start(features)
    for words in range(search.max_length + 1):
        scores, state = decoder.step(torch.tensor([p[-1] for p in prefixes]), state)
        following = log_probs.unsqueeze(1) + torch.log_softmax(scores, dim=1)
        if words >= search.min_length:
            ended = (following[:, END] / (words + 1) ** search.length_penalty).tolist()
            rated |= {prefix[1:]: score for prefix, score in zip(prefixes, ended, strict=True)}
        state = state.select(torch.arange(len(prefixes)).repeat_interleave(len(writable)))
        log_probs = following[:, writable].flatten()
        prefixes = [(*p, word) for p, word in itertools.product(prefixes, writable)]
    return rated


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
@torch.inference_mode()
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_captions(
    seed: int, length_penalty: float
) -> None:
    decoder, beam = lstm(seed), search(beam_size=130, length_penalty=length_penalty)
    features = torch.randn(3, FEATURES)
    for i, found in enumerate(beam(decoder, features)):
        rated = rate_all(decoder, features[i : i + 1], beam)
        assert len(rated) == 3 + 9 + 27 + 81
        assert found.token_ids == max(rated, key=rated.__getitem__)
        assert found.score == pytest.approx(rated[found.token_ids], abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
@torch.inference_mode()
def test_one_beam_is_greedy_search(seed: int) -> None:
    decoder = lstm(seed)
    features = torch.randn(4, FEATURES)
    for i, found in enumerate(search(beam_size=1, max_length=9)(decoder, features)):
        state, token, words = decoder.start(features[i : i + 1]), BEGIN, []
        while True:
            scores, state = decoder.step(torch.tensor([token]), state)
            scores[0, [PAD, BEGIN, UNKNOWN] + ([END] if not words else [])] = -torch.inf
            token = int(scores.argmax())
            if token == END or len(words) == 9:
                break
            words.append(token)
        assert list(found.token_ids) == words
        # A caption of the longest length has ended where END was the likeliest anyway.
        assert found.ended == (token == END)


def one_image(decoder: Decoder, features: Tensor, search: BeamSearch) -> tuple[list[int], float]:
    """The search as lists of Python: ``(words, score)`` of the image ``features`` (1, D)."""
    live: list[tuple[float, list[int], State]] = [(0.0, [], decoder.start(features))]
    ended: list[tuple[float, list[int]]] = []
    forbidden = {PAD, BEGIN} | (set() if search.allow_unknown else {UNKNOWN})
    for words in range(search.max_length + 1):
        allowed = (
            set(range(VOCABULARY)) - forbidden - ({END} if words < search.min_length else set())
        )
        allowed = {END} if words == search.max_length else allowed
        candidates = []
        for log_prob, tokens, state in live:
            scores, following = decoder.step(torch.tensor([tokens[-1] if tokens else BEGIN]), state)
            log_probs = torch.log_softmax(scores[0], dim=0).tolist()
            candidates += [(log_prob + log_probs[w], [*tokens, w], following) for w in allowed]
        candidates.sort(key=lambda candidate: -candidate[0])
        norm = (words + 1) ** search.length_penalty
        best = candidates[: search.beam_size]
        ended += [(p / norm, tokens[:-1]) for p, tokens, _ in best if tokens[-1] == END]
        ended = sorted(ended, key=lambda caption: -caption[0])[: search.beam_size]
        live = [c for c in candidates if c[1][-1] != END][: search.beam_size]
        bound = max((c[0] for c in live), default=-torch.inf)
        longest_norm = (search.max_length + 1) ** search.length_penalty
        if len(ended) == search.beam_size or (ended and ended[0][0] >= bound / longest_norm):
            break
    return ended[0][1], ended[0][0]


def attention(seed: int) -> AttentionDecoder:
    torch.manual_seed(seed)
    options = {"extend_vectors": False, "tied_output": False}
    return spread(AttentionDecoder(**SIZES, **options, dense_size=6))


def merge(seed: int) -> MergeDecoder:
    torch.manual_seed(seed)
    return spread(MergeDecoder(**SIZES))


def pictures(decoder: Decoder, count: int) -> Tensor:
    shape = (count, FEATURES) if decoder.feature_kind == "pooled" else (count, 4, FEATURES)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [h.token_ids for h in found] == [h.token_ids for h in expected]
    assert [h.ended for h in found] == [h.ended for h in expected]
    scores = [h.score for h in expected]
    assert [h.score for h in found] == pytest.approx(scores, abs=1e-5)


MODELS = pytest.mark.parametrize("model", [lstm, merge, attention])


@MODELS
@pytest.mark.parametrize("beam_size", [1, 2, 4])
@pytest.mark.parametrize("changes", [{}, {"allow_unknown": True, "length_penalty": 0.0}])
@torch.inference_mode()
def test_it_is_the_plain_search_of_every_image(
    model: Callable[[int], Any], beam_size: int, changes: dict[str, float]
) -> None:
    decoder = model(beam_size)
    features = pictures(decoder, 6)
    beam = search(beam_size=beam_size, min_length=2, max_length=9, **changes)
    for i, found in enumerate(beam(decoder, features)):
        words, score = one_image(decoder, features[i : i + 1], beam)
        assert list(found.token_ids) == words
        assert found.score == pytest.approx(score, abs=1e-5)


@MODELS
@torch.inference_mode()
def test_company_and_order_of_images_change_nothing(model: Callable[[int], Any]) -> None:
    decoder, beam = model(3), search(max_length=12)
    features = pictures(decoder, 8)
    together = beam(decoder, features)
    order = torch.randperm(8)
    assert_same(beam(decoder, features[order]), [together[i] for i in order.tolist()])
    assert_same([beam(decoder, features[i : i + 1])[0] for i in range(8)], together)


@MODELS
@pytest.mark.parametrize(
    "batching", [Batching(1, 1), Batching(7, 2), Batching(64, 3), Batching(64, 20)]
)
@torch.inference_mode()
def test_the_batching_changes_no_caption(
    model: Callable[[int], Any], batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, beam = model(1), search(max_length=12, length_penalty=1.0)
    features = pictures(decoder, 9)
    expected = beam(decoder, features)
    monkeypatch.setattr(beam_module, "CPU_BATCHING", batching)
    assert_same(beam(decoder, features), expected)


class Counting:
    """A decoder that counts the rows of every step."""

    def __init__(self, decoder: Decoder) -> None:
        self.start = decoder.start
        self.rows: list[int] = []
        self._step = decoder.step

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        self.rows.append(len(token_ids))
        return self._step(token_ids, state)


@torch.inference_mode()
def test_nothing_is_computed_twice_or_for_a_finished_image(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, beam = lstm(5), search(max_length=12)
    features = pictures(decoder, 8)
    alone = []
    for i in range(8):
        counting = Counting(decoder)
        beam(counting, features[i : i + 1])  # type: ignore[arg-type]
        alone.append(counting.rows)
        assert counting.rows == [1] + [3] * (len(counting.rows) - 1)
    assert len({len(rows) for rows in alone}) > 1
    together = Counting(decoder)
    beam(together, features)  # type: ignore[arg-type]
    steps = itertools.zip_longest(*alone, fillvalue=0)
    assert together.rows == [sum(rows) for rows in steps]


class WaitsForDevice(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func.overloadpacket)
        moves = name == "aten._to_copy" and "device" in (kwargs or {})
        waits = name in {"aten._local_scalar_dense", "aten.nonzero", "aten.equal"}
        self.count += moves or waits or name == "aten.lift_fresh"
        # In inference mode what is made of other operations, as Tensor.item is, arrives whole.
        with self:
            made = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if made is NotImplemented else made


@pytest.mark.parametrize(("words", "looks"), [(1, 12), (4, 3), (20, 0)])
@torch.inference_mode()
def test_the_host_waits_only_when_it_looks_which_images_are_decided(
    words: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, beam = lstm(0), search(max_length=11)
    decoder.output.bias[END] = -1e4  # no image is decided before the last word
    features = pictures(decoder, 4)
    monkeypatch.setattr(beam_module, "CPU_BATCHING", Batching(64, words))
    monkeypatch.setattr(beam_module.Ended, "best", lambda *_: [])
    with WaitsForDevice() as waits:
        beam(decoder, features)
    assert waits.count == looks


@torch.inference_mode()
def test_a_decoder_that_never_ends_still_gives_a_caption_and_says_so() -> None:
    decoder = lstm(0)
    decoder.output.bias[END] = -1e4
    for found in search(max_length=6)(decoder, torch.randn(2, FEATURES)):
        assert len(found.token_ids) == 6
        assert not found.ended


@torch.inference_mode()
def test_a_caption_that_just_fits_has_ended() -> None:
    decoder = lstm(8)
    features = torch.randn(6, FEATURES)
    ended = [h for h in search(beam_size=1, max_length=30)(decoder, features) if h.ended]
    longest = max(len(h.token_ids) for h in ended)
    found = search(beam_size=1, max_length=longest)(decoder, features)
    assert longest in [len(h.token_ids) for h in found if h.ended]
    shorter = search(beam_size=1, max_length=longest - 1)(decoder, features)
    assert not all(h.ended for h in shorter)


@torch.inference_mode()
def test_forbidden_words_and_lengths() -> None:
    decoder = lstm(1)
    decoder.output.bias[[PAD, BEGIN, UNKNOWN, END]] += 50.0
    for found in search(min_length=3, max_length=5)(decoder, torch.randn(4, FEATURES)):
        assert len(found.token_ids) == 3
        assert not {PAD, BEGIN, UNKNOWN, END} & set(found.token_ids)
    written = search(allow_unknown=True)(decoder, torch.randn(1, FEATURES))[0].token_ids
    assert UNKNOWN in written


def test_no_image_needs_no_decoder() -> None:
    assert search()(lstm(0), torch.empty(0, FEATURES)) == []
