from __future__ import annotations

import math
import random

import pytest
from pycocoevalcap.cider.cider import Cider

from showtell.metrics.cider import CiderD, DocumentFrequencies

WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "red",
    "blue",
    "ball",
    "on",
    "in",
    "runs",
    "sits",
    "grass",
]


def random_set(images: int, seed: int) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    pick = random.Random(seed)

    def sentence() -> list[str]:
        return pick.choices(WORDS, k=pick.randint(0, 12))

    captions = {str(i): sentence() for i in range(images)}
    return captions, {i: [sentence() for _ in range(pick.randint(1, 5))] for i in captions}


def pycocoevalcap_cider(
    captions: dict[str, list[str]], references: dict[str, list[list[str]]]
) -> list[float]:
    _, scores = Cider().compute_score(
        {i: [" ".join(tokens) for tokens in each] for i, each in references.items()},
        {i: [" ".join(tokens)] for i, tokens in captions.items()},
    )
    return [float(score) for score in scores]


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_pycocoevalcap(seed: int) -> None:
    captions, references = random_set(40, seed)
    cider = CiderD(references)
    ours = [cider.score(tokens, image_id) for image_id, tokens in captions.items()]
    assert ours == pytest.approx(pycocoevalcap_cider(captions, references), abs=1e-9)


def test_frequencies_fixed_in_advance_are_those_of_another_set() -> None:
    """pycocoevalcap gives the same when the other set is scored along."""
    _, training = random_set(60, seed=1)
    _, few = random_set(60, seed=1)
    image_id = "3"
    fixed = CiderD({image_id: few[image_id]}, frequencies=DocumentFrequencies.of(training.values()))
    caption = ["a", "red", "dog", "runs", "on", "grass"]
    along = {**{i: [] for i in training}, image_id: caption}
    expected = pycocoevalcap_cider(along, training)[list(along).index(image_id)]
    assert fixed.score(caption, image_id) == pytest.approx(expected, abs=1e-9)


def test_one_word_by_hand() -> None:
    cider = CiderD({"a": [["dog"]], "b": [["cat"]]})
    # The only n-gram is one word, equal to the reference: cosine 1 for n = 1, nothing beyond.
    assert cider.score(["dog"], "a") == pytest.approx(10 / 4)
    assert cider.score(["cat"], "a") == 0


def test_two_words_and_the_penalty_for_length_by_hand() -> None:
    cider = CiderD({"a": [["red", "dog"]], "b": [["cat"]]})
    # "dog": cosine 1/sqrt(2) for words (clipping keeps the smaller weight, here equal), none for
    # pairs; one pair less than the reference.
    expected = 10 / 4 * (1 / math.sqrt(2)) * math.exp(-1 / 72)
    assert cider.score(["dog"], "a") == pytest.approx(expected)


def test_repeating_a_word_gains_nothing() -> None:
    cider = CiderD({"a": [["dog", "runs"]], "b": [["cat"]]})
    assert cider.score(["dog", "dog"], "a") < cider.score(["dog", "runs"], "a")


def test_the_end_token_rewards_stopping() -> None:
    references = {"a": [["a", "dog", "runs", "</s>"]], "b": [["a", "cat", "sits", "</s>"]]}
    cider = CiderD(references)
    finished = cider.score(["a", "dog", "runs", "</s>"], "a")
    assert finished > cider.score(["a", "dog", "runs"], "a")


def test_document_frequencies_count_an_image_once() -> None:
    frequencies = DocumentFrequencies.of([[["a", "a"], ["a"]], [["b"]], [["a", "c"]]])
    assert frequencies.images == 3
    assert frequencies.count(("a",)) == 2 and frequencies.count(("a", "a")) == 1
    assert frequencies.idf(1) == frequencies.idf(0) == math.log(3)


def test_what_one_image_alone_says_takes_no_memory() -> None:
    frequencies = DocumentFrequencies.of([[["a", "b"]], [["a", "c"]]])
    assert frequencies.counts == {("a",): 2}
