"""When an alarm is raised, when not, and what it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from showtell.metrics.alarms import (
    LEAST_IMAGES,
    Alarm,
    caption_alarms,
    coverage_alarms,
    feature_alarms,
    leak_alarms,
    shared_images_alarms,
)
from showtell.metrics.language import (
    WordStatistics,
    caption_words,
    reference_words,
)

IMAGES = 40
VARIED = {f"{i}.jpg": f"caption number {i} of many" for i in range(IMAGES)}
REFERENCES = {i: (f"a person wrote {i}", f"another one of {i}") for i in VARIED}


def written(
    captions: Mapping[str, str], unfinished: int = 0, references: Any = REFERENCES
) -> WordStatistics:
    cut = list(captions)[:unfinished]
    return caption_words(captions, references, unfinished=cut)


def of_captions(
    captions: Mapping[str, str] = VARIED,
    *,
    references: Mapping[str, Sequence[str]] = REFERENCES,
    unfinished: int = 0,
    cider: float | None = 0.5,
    shuffled_cider: float | None = 0.1,
) -> list[Alarm]:
    return list(
        caption_alarms(
            written(captions, unfinished, references),
            reference_words(references),
            max_length=6,
            cider=cider,
            shuffled_cider=shuffled_cider,
        )
    )


def names(alarms: Sequence[Alarm]) -> list[str]:
    return [alarm.name for alarm in alarms]


def test_healthy_captions_raise_nothing() -> None:
    assert of_captions(unfinished=2) == []


def test_one_caption_for_most_images_is_named_once() -> None:
    collapsed = {i: "a dog" if n < 30 else VARIED[i] for n, i in enumerate(VARIED)}
    (alarm,) = of_captions(collapsed, cider=0.1, shuffled_cider=0.1)
    assert "75% of the images get the same caption, 'a dog'" in str(alarm)
    assert "features do not reach the decoder" in alarm.cause
    assert "optim.lr" in alarm.remedy


def test_half_the_images_may_share_a_caption_that_people_share_too() -> None:
    formula = dict.fromkeys(VARIED, ("a dog",))
    assert of_captions(dict.fromkeys(VARIED, "a dog"), references=formula) == []


def test_captions_as_good_for_wrong_pictures_say_that_the_picture_is_ignored() -> None:
    (alarm,) = of_captions(cider=0.10, shuffled_cider=0.06)
    assert alarm.name == "picture ignored"
    assert of_captions(cider=0.10, shuffled_cider=0.04) == []
    assert of_captions(cider=None, shuffled_cider=None) == []


def test_unfinished_captions_blame_the_model_or_the_limit() -> None:
    (alarm,) = of_captions(unfinished=5)
    assert "12% of the captions were cut off at 6 words" in alarm.finding
    assert "not learned to end" in alarm.cause
    long = dict.fromkeys(VARIED, ("one two three four five six seven eight", "two"))
    (alarm,) = of_captions(unfinished=5, references=long)
    assert "50% of the references are longer" in alarm.cause
    assert "raise decoding.max_length to 8" in alarm.remedy


def test_a_handful_of_images_raises_nothing() -> None:
    few = dict.fromkeys(list(VARIED)[: LEAST_IMAGES - 1], "a dog")
    references = {i: REFERENCES[i] for i in few}
    assert of_captions(few, references=references, unfinished=20, shuffled_cider=0.5) == []


def of_leak(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]] = REFERENCES,
    *,
    scores: dict[str, float] | None = None,
    ceiling: dict[str, float] | None = None,
    training: Sequence[str] | None = None,
) -> list[Alarm]:
    people = reference_words(references, training=training)
    return list(
        leak_alarms(
            written(captions, references=references),
            people,
            scores=scores or {},
            ceiling=ceiling or {},
        )
    )


def test_captions_equal_to_references_have_leaked() -> None:
    leaked = {i: REFERENCES[i][0] if n < 12 else VARIED[i] for n, i in enumerate(VARIED)}
    (alarm,) = of_leak(leaked)
    assert "30% of the captions are, word for word, a reference" in alarm.finding
    assert "showtell doctor" in alarm.remedy
    assert of_leak({**leaked, "0.jpg": "a", "1.jpg": "b"}) == []  # 25 %


def test_formulas_are_no_leak() -> None:
    agreed = dict.fromkeys(VARIED, ("a red dress", "A red dress."))
    assert of_leak(dict.fromkeys(VARIED, "a red dress"), agreed) == []
    single = dict.fromkeys(VARIED, ("a red dress",))
    assert of_leak(dict.fromkeys(VARIED, "a red dress"), single, training=["A red dress"]) == []
    assert names(of_leak(dict.fromkeys(VARIED, "a red dress"), single, training=["a hat"])) == [
        "leaked references"
    ]


def test_far_above_people_has_leaked_but_only_on_both_metrics() -> None:
    people = {"BLEU-4": 0.2, "CIDEr": 1.0}  # copies of one of two references: 1.0 and 5.5
    (alarm,) = of_leak(VARIED, scores={"BLEU-4": 0.61, "CIDEr": 3.3}, ceiling=people)
    assert "BLEU-4 0.610 and CIDEr 3.300 are nearer to those of copied" in alarm.finding
    assert of_leak(VARIED, scores={"BLEU-4": 0.59, "CIDEr": 3.3}, ceiling=people) == []
    assert of_leak(VARIED, scores={"BLEU-4": 0.61, "CIDEr": 3.2}, ceiling=people) == []
    assert of_leak(VARIED, scores={"BLEU-4": 0.9}, ceiling=people) == []
    assert of_leak(VARIED, scores={"BLEU-4": 0.9, "CIDEr": 5.0}, ceiling={}) == []


def test_people_who_all_say_the_same_leave_nothing_above_them() -> None:
    perfect = {"BLEU-4": 1.0, "CIDEr": 10.0}
    assert of_leak(VARIED, scores=perfect, ceiling=perfect) == []


@pytest.mark.parametrize(
    ("scores", "people"),
    [
        ((0.42, 1.45), (0.217, 0.854)),  # trained for CIDEr, on COCO
        ((0.436, 1.843), (0.453, 2.793)),  # on the built-in scenes
        ((0.207, 0.523), (0.218, 0.832)),  # on Flickr8k
    ],
)
def test_good_captioners_have_not_leaked(
    scores: tuple[float, float], people: tuple[float, float]
) -> None:
    names = ("BLEU-4", "CIDEr")
    five = {i: tuple(f"reference {k} of {i}" for k in range(5)) for i in VARIED}
    found, ceiling = (dict(zip(names, values, strict=True)) for values in (scores, people))
    assert of_leak(VARIED, five, scores=found, ceiling=ceiling) == []


def test_a_picture_in_both_splits_is_found_by_its_captions() -> None:
    training = {"x.jpg": ("A man sits .", "Somebody sits", "more"), "y.jpg": ("a dog",)}
    same = {"1.jpg": ("a man sits", "somebody sits!")}
    apart = {"2.jpg": ("a man sits", "a dog"), "3.jpg": ("a dog", "A dog!")}
    (alarm,) = shared_images_alarms(training, same | apart)
    assert "1 of 3 pictures (1.jpg for one)" in alarm.finding
    assert list(shared_images_alarms(training, apart)) == []


def test_a_picture_in_both_splits_is_found_by_its_file() -> None:
    training = {"x.jpg": ("a",), "y.jpg": ("b",)}
    contents = {"x.jpg": "aa", "y.jpg": "bb", "1.jpg": "cc", "2.jpg": "bb"}
    (alarm,) = shared_images_alarms(training, {"1.jpg": ("c",), "2.jpg": ("d",)}, contents=contents)
    assert "2.jpg" in alarm.finding


def test_one_duplicate_in_a_hundred_is_let_pass() -> None:
    many = {f"{i}.jpg": ("a", f"b{i}") for i in range(100)}
    assert list(shared_images_alarms({"x": ("a", "b7")}, many)) == []
    assert len(list(shared_images_alarms({"x": ("a", "b7"), "y": ("a", "b8")}, many))) == 1


def test_low_coverage_names_the_words() -> None:
    assert list(coverage_alarms(0.95, ["zyzzyva"])) == []
    (alarm,) = coverage_alarms(0.4, ["der", "die"])
    assert "only 40%" in alarm.finding
    assert "der, die" in alarm.finding
    assert "text.vectors" in alarm.remedy


def healthy(*shape: int) -> NDArray[np.float64]:
    """Like a ReLU's output, averaged."""
    return np.random.default_rng(0).exponential(0.4, shape)


@pytest.mark.parametrize("shape", [(60, 32), (60, 9, 32)])
def test_ordinary_features_raise_nothing(shape: tuple[int, ...]) -> None:
    features = healthy(*shape)
    if len(shape) == 3:  # regions of an image are alike, as in pictures
        features = features.mean(axis=1, keepdims=True) * healthy(60, 1, 32) * 2 + 0 * features
    assert list(feature_alarms(features)) == []
    features[..., :10] = 0.0  # dead dimensions are no fault while there are others
    assert list(feature_alarms(features)) == []


@pytest.mark.parametrize(
    ("features", "finding"),
    [
        (np.tile(healthy(1, 32), (60, 1)), "100% of the feature dimensions are nearly the same"),
        (np.zeros((60, 32)), "100% of the feature dimensions are nearly the same"),
        (1 + 0.1 * healthy(60, 32), "100% of the feature dimensions are nearly the same"),
        (healthy(20, 32)[np.arange(60) // 3], "67% of the images have the features of another"),
        (5_000 * healthy(60, 32), "image features are of size"),
        (1e-6 * healthy(60, 32), "image features are of size"),
        (np.full((60, 32), np.nan), "not finite"),
    ],
)
def test_unusual_features_are_described(features: NDArray[np.float64], finding: str) -> None:
    (alarm,) = feature_alarms(features)
    assert finding in alarm.finding
    assert "encoder.preprocessing" in alarm.remedy


def test_features_of_few_images_raise_nothing() -> None:
    assert list(feature_alarms(np.zeros((LEAST_IMAGES - 1, 32)))) == []
    assert list(feature_alarms(np.full((100, 8), 0.5, dtype=np.float16))) != []


def test_an_alarm_reads_as_one_sentence() -> None:
    alarm = Alarm("x", "found", "why", "do")
    assert str(alarm) == "found; likely cause: why; remedy: do"
    assert alarm.to_json() == {"name": "x", "finding": "found", "cause": "why", "remedy": "do"}
