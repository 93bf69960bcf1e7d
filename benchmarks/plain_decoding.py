"""Beam search one image at a time, as tutorials write it: the baseline for ours.

After every word the host reads the best continuations of one image and sorts them, in lists. The
decoder, the rules and the resulting captions are the same as ours (tests/benchmarks/
test_plain_decoding.py); only the batch differs: K beams of one image instead of many images.

Dimension key: K beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showtell.decoding.beam import BeamSearch
from showtell.models.decoder import Decoder
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN

# A hypothesis: log probability, or score once it has ended; token ids, BEGIN first.
Caption = tuple[float, list[int]]


@torch.inference_mode()
def search_one_image(decoder: Decoder, features: Tensor, search: BeamSearch) -> tuple[int, ...]:
    """The words of the best caption of ``features`` (1, D) or (1, R, D)."""
    size = search.beam_size
    state = decoder.start(features)
    # The decoder's state of one image is repeated for K rows.
    state = state.select(torch.zeros(size, dtype=torch.long))
    live: list[Caption] = [(0.0, [BEGIN]), *[(-torch.inf, [BEGIN])] * (size - 1)]
    ended: list[Caption] = []
    for words in range(search.max_length + 1):
        scores_KV, state = decoder.step(torch.tensor([ids[-1] for _, ids in live]), state)
        log_probs_KV = torch.log_softmax(scores_KV, dim=1)
        forbid(log_probs_KV, words, search)
        log_probs_KV += torch.tensor([log_prob for log_prob, _ in live]).unsqueeze(1)
        best = continuations(log_probs_KV, 2 * size)
        norm = (words + 1) ** search.length_penalty
        ended += [(p / norm, live[beam][1]) for p, beam, token in best[:size] if token == END]
        ended = sorted(ended, reverse=True)[:size]
        going_on = [each for each in best if each[2] != END][:size]
        live = [(p, [*live[beam][1], token]) for p, beam, token in going_on]
        if is_decided(ended, live, search):
            break
        state = state.select(torch.tensor([beam for _, beam, _ in going_on]))
    return tuple(ended[0][1][1:])


def forbid(log_probs: Tensor, words: int, search: BeamSearch) -> None:
    """Set ``log_probs`` (K, V) to minus infinity for tokens that may not follow ``words`` words."""
    log_probs[:, [PAD, BEGIN]] = -torch.inf
    if not search.allow_unknown:
        log_probs[:, UNKNOWN] = -torch.inf
    if words < search.min_length:
        log_probs[:, END] = -torch.inf
    if words == search.max_length:
        log_probs[:, [i for i in range(log_probs.shape[1]) if i != END]] = -torch.inf


def continuations(log_probs: Tensor, count: int) -> list[tuple[float, int, int]]:
    """The best ``count`` of (K, V): log probability, beam and token."""
    best, flat = log_probs.flatten().topk(count)
    vocabulary_size = log_probs.shape[1]
    return [
        (log_prob, *divmod(position, vocabulary_size))
        for log_prob, position in zip(best.tolist(), flat.tolist(), strict=True)
    ]


def is_decided(ended: Sequence[Caption], live: Sequence[Caption], search: BeamSearch) -> bool:
    """Whether K hypotheses have ended, or no live one can become better than the best of them."""
    bound = max(log_prob for log_prob, _ in live) / (search.max_length + 1) ** search.length_penalty
    return len(ended) == search.beam_size or (bool(ended) and ended[0][0] >= bound)
