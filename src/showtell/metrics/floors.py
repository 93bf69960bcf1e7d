"""Baselines to read a score against: two floors that ignore the image, and a human ceiling."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from showtell.metrics.cider import DocumentFrequencies, ngrams
from showtell.metrics.inputs import ScoringError
from showtell.metrics.scores import score_captions
from showtell.text.tokenizer import tokenize

PEOPLE = "people"  # name of the ceiling

Tokens = tuple[str, ...]

_CANDIDATES = 10
_ORDERS = range(1, 5)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Scores to compare a run with, and the rule they come from."""

    name: str
    rule: str
    scores: dict[str, float]


def constant_caption(
    training: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
) -> Yardstick:
    """The best scores of using the same caption for every image.

    Of `consensus_captions`, those with the best BLEU-4 and the best CIDEr on ``references`` are
    chosen; for each metric the better of the two counts. The choice uses the references, so the
    floor is, if anything, too high.

    Args:
        training: image id -> captions of the training set.
        references: image id -> references of the scored split.
        metrics: names as for `showtell.metrics.scores.score_captions`.

    Raises:
        ScoringError: no training caption has four words, or the references cannot be scored.
    """

    def score(caption: str, names: Sequence[str]) -> dict[str, float]:
        return score_captions(dict.fromkeys(references, caption), references, names).scores

    candidates = consensus_captions(training, count=_CANDIDATES)
    tried = {caption: score(caption, ["BLEU", "CIDEr"]) for caption in candidates}
    best = [max(tried, key=lambda c: tried[c][name]) for name in ("BLEU-4", "CIDEr")]
    chosen = [score(caption, metrics) for caption in dict.fromkeys(best)]
    shared = [name for name in chosen[0] if all(name in each for each in chosen)]
    captions = ", or for the better score ".join(map(repr, dict.fromkeys(best)))
    scores = {name: max(each[name] for each in chosen) for name in shared}
    return Yardstick("constant caption", f"every image gets {captions}", scores)


def consensus_captions(training: Mapping[str, Sequence[str]], *, count: int) -> list[str]:
    """The training captions, of four words or more, that agree most with all others, lower-cased.

    The first ``count`` agree by BLEU-4, as each would score if given to every training image: the
    geometric mean, over n = 1 to 4, of the mean fraction of images whose captions contain its
    n-grams, times the brevity penalty for the mean closest reference length. A repeated n-gram
    counts once. Up to ``count`` more agree by CIDEr without the clipping and the length penalty of
    CIDEr-D: the mean cosine of their tf-idf vectors with those of all captions.

    Raises:
        ScoringError: no training caption has four words.
    """
    tokenized = [[tuple(tokenize(caption)) for caption in each] for each in training.values()]
    frequencies = DocumentFrequencies.of(tokenized)
    lengths = _expected_closest_lengths(tokenized)
    mean = _mean_vector(tokenized, frequencies)
    captions = {tokens for each in tokenized for tokens in each if len(tokens) >= max(_ORDERS)}
    if not captions:
        raise ScoringError("no training caption has four words: give the captions of a data set")
    agreements: list[dict[Tokens, float]] = [
        {tokens: _expected_bleu(tokens, frequencies, lengths) for tokens in captions},
        {tokens: _expected_cider(tokens, frequencies, mean) for tokens in captions},
    ]
    # Ties are broken alphabetically, so that the order of the training set does not matter.
    best = (sorted(captions, key=lambda t: (-each[t], t))[:count] for each in agreements)
    return list(dict.fromkeys(" ".join(tokens) for tokens in chain.from_iterable(best)))


def _mean_vector(
    tokenized: Sequence[Sequence[Tokens]], frequencies: DocumentFrequencies
) -> dict[Tokens, float]:
    """The mean over images of the mean over their captions of `_unit_vector`."""
    mean: dict[Tokens, float] = defaultdict(float)
    for sentences in tokenized:
        for tokens in sentences:
            for gram, weight in _unit_vector(tokens, frequencies).items():
                mean[gram] += weight / len(sentences) / len(tokenized)
    return mean


def _expected_cider(
    tokens: Tokens, frequencies: DocumentFrequencies, mean: Mapping[Tokens, float]
) -> float:
    # The mean of the cosines is the product with the mean vector, so no pairs are needed.
    vector = _unit_vector(tokens, frequencies)
    return sum(weight * mean.get(gram, 0.0) for gram, weight in vector.items()) / len(_ORDERS)


def _unit_vector(tokens: Tokens, frequencies: DocumentFrequencies) -> dict[Tokens, float]:
    """n-gram -> tf-idf, normalised to unit length separately for each n."""
    vector = {
        gram: n * frequencies.idf(frequencies.count(gram)) for gram, n in ngrams(tokens).items()
    }
    squares = dict.fromkeys(_ORDERS, 0.0)
    for gram, weight in vector.items():
        squares[len(gram)] += weight * weight
    # An n-gram that every image contains has weight 0.
    return {
        gram: weight / math.sqrt(squares[len(gram)]) for gram, weight in vector.items() if weight
    }


def _expected_bleu(
    tokens: Sequence[str], frequencies: DocumentFrequencies, lengths: Mapping[int, float]
) -> float:
    shared = dict.fromkeys(_ORDERS, 0)
    for gram in ngrams(tokens):
        shared[len(gram)] += frequencies.count(gram)
    shares = [shared[n] / (len(tokens) - n + 1) / frequencies.images for n in _ORDERS]
    ratio = len(tokens) / lengths[len(tokens)]
    penalty = 1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)
    return penalty * math.prod(shares) ** (1 / len(shares))


def _expected_closest_lengths(tokenized: Sequence[Sequence[Sequence[str]]]) -> dict[int, float]:
    """Caption length -> mean over images of the closest reference length."""
    lengths = [sorted({len(tokens) for tokens in each}) for each in tokenized if each]
    wanted = {length for each in lengths for length in each}
    return {
        length: sum(min(each, key=lambda x: abs(x - length)) for each in lengths) / len(lengths)
        for length in wanted
    }


def shuffled(captions: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """Give every image the caption of another one; every caption is used once.

    Raises:
        ScoringError: fewer than two images.
    """
    if len(captions) < 2:
        raise ScoringError("captions of a single image cannot be shuffled: give two or more")
    order = list(captions)
    random.Random(seed).shuffle(order)
    # A cyclic shift in random order, so that no image keeps its own.
    given = dict(zip(order, order[1:] + order[:1], strict=True))
    return {image_id: captions[given[image_id]] for image_id in captions}


def shuffled_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    *,
    seed: int,
) -> Yardstick:
    """The scores of captions given to the wrong images: what their style alone achieves."""
    scores = score_captions(shuffled(captions, seed=seed), references, metrics)
    return Yardstick(
        "shuffled images", f"each image's caption given to another, seed {seed}", scores.scores
    )


def shuffled_cider(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> float | None:
    """CIDEr of captions given to the wrong images; None with fewer than two images."""
    if len(captions) < 2:
        return None
    return shuffled_captions(captions, references, ["CIDEr"], seed=0).scores["CIDEr"]


def human_ceiling(references: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> Yardstick:
    """How people score against each other: each reference against the others of its image.

    The mean over rounds, of which round k scores the k-th reference of every image. Images with one
    reference are left out; of the rest, the fewest references give the number of rounds.

    Raises:
        ScoringError: no image has two references.
    """
    shared = {image_id: list(each) for image_id, each in references.items() if len(each) > 1}
    if not shared:
        raise ScoringError("people cannot be compared: no image has more than one reference")
    rounds = [score_captions(*round_, metrics).scores for round_ in _rounds(shared)]
    means = {name: sum(each[name] for each in rounds) / len(rounds) for name in rounds[0]}
    rule = f"each of {len(rounds)} references against the others, {len(shared)} images"
    return Yardstick(PEOPLE, rule, means)


def _rounds(
    references: Mapping[str, Sequence[str]],
) -> Iterator[tuple[dict[str, str], dict[str, list[str]]]]:
    for k in range(min(map(len, references.values()))):
        captions = {image_id: each[k] for image_id, each in references.items()}
        others = {i: [*each[:k], *each[k + 1 :]] for i, each in references.items()}
        yield captions, others
