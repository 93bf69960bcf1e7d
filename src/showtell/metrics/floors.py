"""What a score must be read against: two floors that need no picture, and what people reach."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from showtell.metrics.cider import DocumentFrequencies, ngrams
from showtell.metrics.inputs import ScoringError
from showtell.metrics.scores import score_captions
from showtell.text.tokenizer import tokenize

PEOPLE = "people"  # what the ceiling is called

_CANDIDATES = 10
_ORDERS = range(1, 5)


@dataclass(frozen=True, slots=True)
class Landmark:
    """Scores to stand beside a run's, and the rule that gave them."""

    name: str
    rule: str
    scores: dict[str, float]


def constant_caption(
    training: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    *,
    metric: str = "BLEU-4",
) -> Landmark:
    """The best score of one and the same caption for every image.

    Candidates are the ten captions of the training set that would get the highest BLEU-4 if each
    were given to every training image; the one that scores best on ``references`` by ``metric``
    (BLEU-1 to BLEU-4 or CIDEr) is taken. That choice looks at the references, so the floor is, if
    anything, too high.

    Args:
        training: image id -> captions of the training set.
        references: image id -> references of the split that is scored.
    """
    tried = (
        (caption, score_captions(dict.fromkeys(references, caption), references, ["BLEU", "CIDEr"]))
        for caption in consensus_captions(training, count=_CANDIDATES)
    )
    caption, scores = max(tried, key=lambda pair: pair[1].scores[metric])
    return Landmark("constant caption", f"every image gets {caption!r}", scores.scores)


def consensus_captions(training: Mapping[str, Sequence[str]], *, count: int) -> list[str]:
    """The ``count`` captions that agree most with all the others, as lower-case words.

    Agreement is the BLEU-4 of giving the caption to every training image: the mean share of
    images that hold its n-grams, for n = 1 to 4, with the brevity penalty of that image's closest
    reference. An n-gram that a caption repeats counts once.
    """
    tokenized = [[tuple(tokenize(caption)) for caption in each] for each in training.values()]
    frequencies = DocumentFrequencies.of(tokenized)
    lengths = _expected_closest_lengths(tokenized)
    captions = {tokens for each in tokenized for tokens in each if len(tokens) >= max(_ORDERS)}
    # Words break ties, so that the order of the training set does not matter.
    best = sorted(captions, key=lambda t: (-_expected_bleu(t, frequencies, lengths), t))[:count]
    if not best:
        raise ScoringError("no training caption has four words: give the captions of a data set")
    return [" ".join(tokens) for tokens in best]


def _expected_bleu(
    tokens: Sequence[str], frequencies: DocumentFrequencies, lengths: Mapping[int, float]
) -> float:
    shared = dict.fromkeys(_ORDERS, 0)
    for gram in ngrams(tokens):
        shared[len(gram)] += frequencies.counts[gram]
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
) -> Landmark:
    """The scores of captions given to the wrong images: what their style alone is worth."""
    scores = score_captions(shuffled(captions, seed=seed), references, metrics)
    return Landmark(
        "shuffled images", f"each image's caption given to another, seed {seed}", scores.scores
    )


def shuffled_cider(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> float | None:
    """CIDEr of captions given to the wrong images; None for one image, which has no wrong one."""
    if len(captions) < 2:
        return None
    return shuffled_captions(captions, references, ["CIDEr"], seed=0).scores["CIDEr"]


def human_ceiling(references: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> Landmark:
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
    return Landmark(PEOPLE, rule, means)


def _rounds(
    references: Mapping[str, Sequence[str]],
) -> Iterator[tuple[dict[str, str], dict[str, list[str]]]]:
    for k in range(min(map(len, references.values()))):
        captions = {image_id: each[k] for image_id, each in references.items()}
        others = {i: [*each[:k], *each[k + 1 :]] for i, each in references.items()}
        yield captions, others
