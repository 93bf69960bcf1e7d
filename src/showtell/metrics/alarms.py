"""Alarms for collapsed trainings and scores that are too good, each with cause and remedy.

Thresholds are far from the values of healthy runs (given at each constant, for Flickr8k and the
built-in scenes) and far from those of a collapse, so that alarms are rare and right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from showtell.metrics.language import WordStatistics, letters_of

# Over fewer images than this, fractions are dominated by chance.
LEAST_IMAGES = 30

# The most frequent caption goes to 1.5 % of the images on Flickr8k, to 2 % on the scenes, and to
# all in a collapse; above one half, most images get the same.
MOST_USED = 0.5
# Captions assigned to the wrong images keep 14 % of their CIDEr on Flickr8k and 10 % on the scenes;
# those of a model that ignores the image keep all of it.
SHUFFLED_CIDER = 0.5
# Captions cut off at the maximum length, without END: 0.5 % on Flickr8k, none on the scenes.
UNFINISHED = 0.1
# GloVe 6B covers 99.9 % of the tokens of English captions, and only a part of them in another
# language or with capitals.
COVERED_TOKENS = 0.9
# Captions equal to one of their references, beyond what agreement among people or stock phrases
# explain: 0.4 % on Flickr8k, 1 % on the scenes. A model that has seen the references repeats most.
AGREEING = 0.25
# On a scale from human scores (0) to those of copied references (1). The best COCO captioners reach
# 0.26 in BLEU-4 and 0.33 in CIDEr, models on the scenes less than 0.
ABOVE_PEOPLE = 0.5
# Images of a validation split that are also in the training set, by file or by all their captions:
# none on Flickr8k and the scenes. A few duplicates do not change a score.
SHARED_IMAGES = 0.01

# Feature dimensions whose standard deviation over images is at most 0.3 of their RMS: at most 2 %
# with trained encoders, 59-82 % with untrained ones, 100 % if all images are equal.
STILL_DEVIATION = 0.3
STILL_DIMENSIONS = 0.5
# Root mean square of pooled features: 0.37-0.50 with trained encoders. Untrained ones gave 3e-8
# to 10, and 2,000 when pixels were 0..255.
FEATURE_SCALE = (0.01, 100.0)
# Images with the same features as another one: none on Flickr8k and the scenes.
EQUAL_FEATURES = 0.5


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is probably wrong: the finding, its likely cause and a remedy.

    ``name`` is the kind of alarm, used as a key in files and to report each kind once.
    """

    name: str
    finding: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.finding}; likely cause: {self.cause}; remedy: {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """The entry in ``run.json``."""
        return asdict(self)


def caption_alarms(
    written: WordStatistics,
    people: WordStatistics,
    *,
    max_length: int,
    cider: float | None,
    shuffled_cider: float | None,
) -> Iterator[Alarm]:
    """Alarms about generated captions of a split, most significant first.

    Args:
        written: the generated captions, with ``agreeing`` and ``unfinished``.
        people: the references of the same images, with ``agreeing``.
        max_length: maximum caption length of the search, in words.
        cider: CIDEr of the captions; None if unknown.
        shuffled_cider: CIDEr when each image gets the caption of another; None if unknown.
    """
    if written.captions < LEAST_IMAGES:
        return
    if written.most_used > MOST_USED > 2 * people.most_used:
        yield _one_caption(written)
    elif cider is not None and shuffled_cider is not None:
        # After `_one_caption` this would be redundant: shuffling equal captions changes nothing.
        yield from _picture_ignored(cider, shuffled_cider)
    if (written.unfinished or 0.0) > UNFINISHED:
        yield _unfinished(written, people, max_length)


def leak_alarms(
    written: WordStatistics,
    people: WordStatistics,
    *,
    scores: Mapping[str, float],
    ceiling: Mapping[str, float],
) -> Iterator[Alarm]:
    """An alarm if the captions are so good that the model must have seen the references.

    Args:
        written: the generated captions, with ``agreeing``.
        people: the references, with ``agreeing`` and, if a training set is available, ``copied``.
        scores: the scores of the captions.
        ceiling: scores of people against each other; empty with only one reference per image.
    """
    if written.captions < LEAST_IMAGES:
        return
    # People who use stock phrases agree with each other or with the training set.
    usual = max(people.agreeing or 0.0, people.copied or 0.0)
    agreeing = written.agreeing or 0.0
    above = _above_people(scores, ceiling, references=people.captions / written.captions)
    if agreeing > usual + AGREEING:
        finding = f"{agreeing:.0%} of the captions are, word for word, a reference of their image"
    elif min(above) > ABOVE_PEOPLE:
        finding = (
            f"BLEU-4 {scores['BLEU-4']:.3f} and CIDEr {scores['CIDEr']:.3f} are nearer to those "
            f"of copied references than to those of people ({ceiling['BLEU-4']:.3f} and "
            f"{ceiling['CIDEr']:.3f})"
        )
    else:
        return
    yield Alarm(
        "leaked references",
        finding,
        "the model was trained on these pictures or captions",
        "look for the overlap with `showtell doctor`, keep the splits apart, and train anew",
    )


def _above_people(
    scores: Mapping[str, float], ceiling: Mapping[str, float], *, references: float
) -> tuple[float, float]:
    """BLEU-4 and CIDEr on a scale from people (0) to copied references (1).

    A copied reference has CIDEr 10 against itself, and people's CIDEr against the others.
    """
    if not all(name in known for name in ("BLEU-4", "CIDEr") for known in (scores, ceiling)):
        return 0.0, 0.0
    copied = {"BLEU-4": 1.0, "CIDEr": (10 + (references - 1) * ceiling["CIDEr"]) / references}
    # If people all say the same, nothing can score higher.
    room = {name: max(best - ceiling[name], 1e-9) for name, best in copied.items()}
    bleu, cider = ((scores[name] - ceiling[name]) / left for name, left in room.items())
    return bleu, cider


def shared_images_alarms(
    training: Mapping[str, Sequence[str]],
    scored: Mapping[str, Sequence[str]],
    *,
    contents: Mapping[str, str] | None = None,
) -> Iterator[Alarm]:
    """An alarm if images of a split are in the training set too, by captions or by files.

    An image counts by its captions if they all belong to a single training image and at least two
    of them differ.

    Args:
        training: image id -> captions.
        scored: image id -> captions.
        contents: image id -> checksum of the file, for images of either set as far as known.
    """
    shared = set(_same_captions(training, scored))
    if contents is not None:
        seen = {contents[image_id] for image_id in training if image_id in contents}
        shared |= {image_id for image_id in scored if contents.get(image_id) in seen}
    if len(shared) <= SHARED_IMAGES * len(scored):
        return
    yield Alarm(
        "shared images",
        f"{len(shared)} of {len(scored)} pictures ({sorted(shared)[0]} for one) are in the "
        "training too",
        "the splits overlap",
        "list the pairs with `showtell doctor`, and take them out of one of the splits",
    )


def coverage_alarms(tokens: float, missing: Sequence[str]) -> Iterator[Alarm]:
    """An alarm if the word vectors do not fit the captions.

    Args:
        tokens: fraction of the captions' tokens that have a vector.
        missing: words without a vector, most frequent first.
    """
    if tokens >= COVERED_TOKENS:
        return
    yield Alarm(
        "low coverage",
        f"only {tokens:.0%} of the training's words have a word vector, {', '.join(missing[:5])} "
        "have none",
        "vectors of another language, spelling or case than the lower-case captions",
        "set text.vectors to lower-case vectors in the language of the captions",
    )


def feature_alarms(sample: NDArray[np.floating[Any]]) -> Iterator[Alarm]:
    """An alarm if features (n, D) or (n, R, D) of ``n`` different images look wrong."""
    regions = sample[:, None] if sample.ndim == 2 else sample
    pooled = regions.mean(axis=1, dtype=np.float64)
    if len(pooled) < LEAST_IMAGES:
        return
    if finding := _feature_fault(pooled):
        yield Alarm(
            "features",
            finding,
            "the encoder has wrong weights or gets its pictures wrongly preprocessed",
            "check encoder.weights and encoder.preprocessing against those of the network, look "
            "at some pictures, then fill features.root anew",
        )


def _feature_fault(pooled: NDArray[np.float64]) -> str | None:
    """What is unusual about pooled features (n, D), or None."""
    if not np.isfinite(pooled).all():
        return "image features hold values that are not finite"
    scale = float(np.sqrt(np.mean(pooled**2)))
    magnitudes = np.sqrt(np.mean(pooled**2, axis=0))
    still = float(np.mean(pooled.std(axis=0) <= STILL_DEVIATION * magnitudes))
    equal = 1 - len(np.unique(pooled, axis=0)) / len(pooled)
    if still > STILL_DIMENSIONS:
        return f"{still:.0%} of the feature dimensions are nearly the same for all images"
    if equal > EQUAL_FEATURES:
        return f"{equal:.0%} of the images have the features of another one"
    if not FEATURE_SCALE[0] <= scale <= FEATURE_SCALE[1]:
        return f"image features are of size {scale:.2g}, where trained encoders give about 0.5"
    return None


def _one_caption(written: WordStatistics) -> Alarm:
    caption, _ = written.most_frequent[0]
    return Alarm(
        "one caption",
        f"{written.most_used:.0%} of the images get the same caption, {caption!r}",
        "the image features do not reach the decoder, the learning rate is too high, or the "
        "training has only begun",
        "train on; if it stays, lower optim.lr, and look at the features for alarms of their own",
    )


def _picture_ignored(cider: float, shuffled_cider: float) -> Iterator[Alarm]:
    if shuffled_cider > SHUFFLED_CIDER * cider:
        yield Alarm(
            "picture ignored",
            f"captions given to the wrong images score CIDEr {shuffled_cider:.3f}, the real ones "
            f"{cider:.3f}",
            "the decoder ignores the picture, or the features belong to other images",
            "check that data and features name the same pictures, fill features.root anew, and "
            "lower model.image_dropout",
        )


def _unfinished(written: WordStatistics, people: WordStatistics, max_length: int) -> Alarm:
    finding = f"{written.unfinished:.0%} of the captions were cut off at {max_length} words"
    longer = sum(n for length, n in people.lengths.items() if length > max_length)
    if longer > UNFINISHED * people.captions:
        return Alarm(
            "unfinished",
            finding,
            f"decoding.max_length is too small: {longer / people.captions:.0%} of the references "
            "are longer",
            f"raise decoding.max_length to {max(people.lengths)}",
        )
    return Alarm(
        "unfinished",
        finding,
        "the model has not learned to end a caption",
        "train on; if it stays, lower optim.lr or decoding.length_penalty",
    )


def _same_captions(
    training: Mapping[str, Sequence[str]], scored: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """The scored images whose captions all belong to one training image; two must differ."""
    wanted = {image_id: set(map(letters_of, captions)) for image_id, captions in scored.items()}
    of_interest = set().union(*wanted.values())
    images_of: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, captions in training.items():
        for letters in of_interest.intersection(map(letters_of, captions)):
            images_of[letters].add(image_id)
    for image_id, sentences in wanted.items():
        if len(sentences) > 1 and _in_common([images_of[s] for s in sentences]):
            yield image_id


def _in_common(sets: Collection[set[str]]) -> set[str]:
    return set.intersection(*sets) if all(sets) else set()
