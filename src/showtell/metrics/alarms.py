"""Warnings that a training has collapsed or that a score is too good, each with cause and remedy.

Thresholds are far from what healthy runs show (on Flickr8k and on the built-in scenes, beside each
constant) and far from what a collapse shows: an alarm is meant to be rare and right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from showtell.metrics.language import WordStatistics, letters_of

# Shares over fewer images than this are accidents.
LEAST_IMAGES = 30

# The most frequent caption goes to 1.5 % of the pictures on Flickr8k, to 2 % on the scenes, and to
# all of them in a collapse; halfway, most pictures get the same.
MOST_USED = 0.5
# Captions that were given to the wrong pictures keep 14 % of their CIDEr on Flickr8k and 10 % on
# the scenes; a model that does not look at the picture keeps all.
SHUFFLED_CIDER = 0.5
# Captions of the longest length without an end: 0.5 % on Flickr8k, none on the scenes.
UNFINISHED = 0.1
# GloVe 6B knows 99.9 % of the running words of English captions; in another language, or spelt with
# capitals, it knows a part of them.
COVERED_TOKENS = 0.9
# Captions equal to one of their references, beyond what people's agreement or a stock of formulas
# explains: 0.4 % on Flickr8k, 1 % on the scenes. A model that has seen the references repeats most.
AGREEING = 0.25
# From what people reach (0) to what copies of a reference reach (1). The best captioners of COCO
# stand at 0.26 in BLEU-4 and 0.33 in CIDEr, models on the scenes below 0.
ABOVE_PEOPLE = 0.5
# Pictures of a validation split that are found in the training, by file or by all their captions:
# none on Flickr8k and the scenes. A few duplicates move no score.
SHARED_IMAGES = 0.01

# Dimensions of a feature vector whose deviation over images is less than 0.3 of their magnitude:
# at most 2 % with trained encoders, 59-82 % with untrained ones, 100 % where all images are equal.
STILL_DEVIATION = 0.3
STILL_DIMENSIONS = 0.5
# Root mean square of pooled features: 0.37-0.50 with trained encoders. Untrained ones gave 3e-8
# to 10, and 2,000 where pixels came as 0..255.
FEATURE_SCALE = (0.01, 100.0)
# Images that share their features with another one: none on Flickr8k and the scenes.
EQUAL_FEATURES = 0.5


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is probably wrong: what was seen, why that likely is, what to do about it.

    ``name`` is the kind of alarm, one word for files and for saying each once.
    """

    name: str
    finding: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.finding}; likely cause: {self.cause}; remedy: {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` keeps it."""
        return asdict(self)


def caption_alarms(
    written: WordStatistics,
    people: WordStatistics,
    *,
    max_length: int,
    cider: float | None,
    shuffled_cider: float | None,
) -> Iterator[Alarm]:
    """What is wrong with generated captions of a split, most telling first.

    Args:
        written: the generated captions, with ``agreeing`` and ``unfinished``.
        people: the references of the same images, with ``agreeing``.
        max_length: the longest caption in words that the search allows.
        cider: CIDEr of the captions.
        shuffled_cider: CIDEr when each picture gets the caption of another.
    """
    if written.captions < LEAST_IMAGES:
        return
    if written.most_used > MOST_USED > 2 * people.most_used:
        yield _one_caption(written)
    elif cider is not None and shuffled_cider is not None:
        # With one caption for all, shuffling changes nothing and this would say it again.
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
    """Whether the captions are so good that the model must have seen the references.

    Args:
        written: the generated captions, with ``agreeing``.
        people: the references, with ``agreeing`` and, where a training set is at hand, ``copied``.
        scores: the scores of the captions.
        ceiling: the same of people against one another; empty where there is one reference.
    """
    if written.captions < LEAST_IMAGES:
        return
    # Where people use formulas, they agree among themselves or with the training.
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
    """Where BLEU-4 and CIDEr stand between people (0) and copied references (1).

    A copy is as like to itself as can be, 10, and to the other references as people are.
    """
    if not all(name in known for name in ("BLEU-4", "CIDEr") for known in (scores, ceiling)):
        return 0.0, 0.0
    copied = {"BLEU-4": 1.0, "CIDEr": (10 + (references - 1) * ceiling["CIDEr"]) / references}
    # People who all say the same leave no room above them.
    room = {name: max(best - ceiling[name], 1e-9) for name, best in copied.items()}
    bleu, cider = ((scores[name] - ceiling[name]) / left for name, left in room.items())
    return bleu, cider


def shared_images_alarms(
    training: Mapping[str, Sequence[str]],
    scored: Mapping[str, Sequence[str]],
    *,
    contents: Mapping[str, str] | None = None,
) -> Iterator[Alarm]:
    """Whether pictures of a split are in the training, known by their captions or their files.

    A picture counts whose captions, two different ones at least, all belong to a single training
    picture.

    Args:
        training: image id -> captions.
        scored: image id -> captions.
        contents: image id -> checksum of the file, of both as far as it is known.
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
    """Whether the word vectors fit the captions.

    Args:
        tokens: share of the running words that have a vector.
        missing: words without, the most frequent first.
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
    """What is wrong with the features (n, D) or (n, R, D) of ``n`` different images."""
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
    """What is unusual about pooled features (n, D), if anything is."""
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
    """The scored images all of whose captions belong to one training image."""
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
