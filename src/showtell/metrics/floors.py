"""What a score must be read against: two floors that need no picture, and what people reach."""

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

PEOPLE = "people"  # what the ceiling is called

Tokens = tuple[str, ...]

_CANDIDATES = 10
_ORDERS = range(1, 5)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Scores to stand beside a run's, and the rule that gave them."""

    name: str
    rule: str
    scores: dict[str, float]


def constant_caption(
    training: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
) -> Yardstick:
    """The best scores of one and the same caption for every image.

    Two captions are chosen: of those of `consensus_captions`, the one that scores best on
    ``references`` by BLEU-4 and the one that does by CIDEr. Both are scored, and for each metric
    the better counts. The choice looks at the references, so the floor is, if anything, too high.

    Args:
        training: image id -> captions of the training set.
        references: image id -> references of the split that is scored.
        metrics: names as for `showtell.metrics.scores.score_captions`.
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
    """The captions that agree most with all the others, as lower-case words.

    The first ``count`` agree by BLEU-4, as each would score when given to every training image:
    the mean share of images that hold its n-grams, for n = 1 to 4, with the brevity penalty of
    that image's closest reference. An n-gram that a caption repeats counts once. Up to ``count``
    further ones agree by CIDEr, without the clipping and the length penalty of CIDEr-D: the mean
    cosine of their tf-idf vectors with those of all the captions.
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
    # Words break ties, so that the order of the training set does not matter.
    best = (sorted(captions, key=lambda t: (-each[t], t))[:count] for each in agreements)
    return list(dict.fromkeys(" ".join(tokens) for tokens in chain.from_iterable(best)))


def _mean_vector(
    tokenized: Sequence[Sequence[Tokens]], frequencies: DocumentFrequencies
) -> dict[Tokens, float]:
    """The mean over images of the mean unit vector of their captions."""
    mean: dict[Tokens, float] = defaultdict(float)
    for sentences in tokenized:
        for tokens in sentences:
            for gram, weight in _unit_vector(tokens, frequencies).items():
                mean[gram] += weight / len(sentences) / len(tokenized)
    return mean


def _expected_cider(
    tokens: Tokens, frequencies: DocumentFrequencies, mean: Mapping[Tokens, float]
) -> float:
    # The mean of cosines is the cosine with the mean: no pair of captions need be looked at.
    vector = _unit_vector(tokens, frequencies)
    return sum(weight * mean.get(gram, 0.0) for gram, weight in vector.items()) / len(_ORDERS)


def _unit_vector(tokens: Tokens, frequencies: DocumentFrequencies) -> dict[Tokens, float]:
    """The tf-idf of each n-gram, those of one n at length 1."""
    vector = {
        gram: n * frequencies.idf(frequencies.count(gram)) for gram, n in ngrams(tokens).items()
    }
    squares = dict.fromkeys(_ORDERS, 0.0)
    for gram, weight in vector.items():
        squares[len(gram)] += weight * weight
    # An n-gram that every image has weighs nothing.
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
    """Caption length -> mean over images of the reference length closest to it."""
    lengths = [sorted({len(tokens) for tokens in each}) for each in tokenized if each]
    wanted = {length for each in lengths for length in each}
    return {
        length: sum(min(each, key=lambda x: abs(x - length)) for each in lengths) / len(lengths)
        for length in wanted
    }


def shuffled(captions: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """Every image gets the caption of another one, and every caption is used once.

    Raises:
        ScoringError: fewer than two images.
    """
    if len(captions) < 2:
        raise ScoringError("captions of a single image cannot be shuffled: give two or more")
    order = list(captions)
    random.Random(seed).shuffle(order)
    # Around one circle in random order: nobody keeps its own.
    given = dict(zip(order, order[1:] + order[:1], strict=True))
    return {image_id: captions[given[image_id]] for image_id in captions}


def shuffled_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    *,
    seed: int,
) -> Yardstick:
    """The scores of captions given to the wrong images: what their style alone is worth."""
    scores = score_captions(shuffled(captions, seed=seed), references, metrics)
    return Yardstick(
        "shuffled images", f"each image's caption given to another, seed {seed}", scores.scores
    )


def shuffled_cider(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> float | None:
    """CIDEr of captions given to the wrong images; None for one image, which has no wrong one."""
    if len(captions) < 2:
        return None
    return shuffled_captions(captions, references, ["CIDEr"], seed=0).scores["CIDEr"]


def human_ceiling(references: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> Yardstick:
    """How people score against one another: each reference against all the others of its image.

    The mean over rounds; round k scores the k-th reference of every image. There are as many
    rounds as the image with the fewest references has; images with one reference are left out.

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
