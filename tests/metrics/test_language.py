"""Captions as language, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showtell.data.sources import flickr8k
from showtell.metrics.language import (
    WordStatistics,
    caption_words,
    copied_share,
    figure_text,
    letters_of,
    reference_words,
    repeats_itself,
    sentences_of,
)
from showtell.text.tokenizer import tokenize

CAPTIONS = {
    "a.jpg": "A dog runs .",
    "b.jpg": "a dog runs",
    "c.jpg": "two dogs",
    "d.jpg": "a red dog and a red dog <unknown>",
}
REFERENCES = {
    "a.jpg": ["the dog is running", "A dog runs!", "a dog runs"],
    "b.jpg": ["a cat sits", "the cat"],
    "c.jpg": ["two dogs play", "dogs"],
    "d.jpg": ["a zebra"],
}


@pytest.fixture
def written() -> WordStatistics:
    return caption_words(
        CAPTIONS,
        REFERENCES,
        training=["Two dogs.", "a dog"],
        vocabulary=["a", "dog", "runs", "two", "dogs", "red", "and", "cat"],
        unfinished={"d.jpg"},
    )


def test_generated_captions_by_hand(written: WordStatistics) -> None:
    assert written.captions == 4
    assert written.lengths == {3: 2, 2: 1, 8: 1}
    assert written.mean_words == pytest.approx(16 / 4)
    assert written.length_shares == {3: 50, 2: 25, 8: 25}
    assert (written.different_words, written.different_captions) == (8, 3)
    assert written.most_frequent == (("a dog runs", 2),)
    assert written.most_used == 0.5
    assert written.vocabulary_used == 7 / 8  # all but "cat"
    assert written.unknown_words == 1 / 16
    assert written.repeating == 0.25
    assert written.agreeing == 0.25
    assert written.copied == 0.25
    assert written.unfinished == 0.25


def test_people_by_hand() -> None:
    people = reference_words(
        REFERENCES, training=["the cat"], vocabulary=["a", "dog", "the", "cat"]
    )
    assert people.captions == 8
    assert people.agreeing == 2 / 8  # "a dog runs" twice for one image
    assert people.copied == 1 / 8
    assert people.unfinished is None
    # is, running, runs twice, sits, two, dogs twice, play, zebra
    assert people.unknown_words == pytest.approx(10 / 21)


def test_figures_name_what_is_known_and_nothing_else(written: WordStatistics) -> None:
    figures = written.figures()
    assert figures["longest in words"] == 8
    assert figures["share unfinished"] == 0.25
    assert all(name == name.lower() for name in figures)
    alone = caption_words({"a.jpg": "a dog"}).figures()
    assert set(figures) - set(alone) == {
        *("share of the vocabulary", "share of unknown words", "share equal to a reference"),
        *("share copied from training", "share unfinished"),
    }


def test_figures_for_people() -> None:
    assert figure_text("share unfinished", 0.0123) == "1.2 %"
    assert figure_text("mean length in words", 10.125) == "10.1"
    assert figure_text("different words", 1234) == "1,234"


def test_captions_without_words_are_counted() -> None:
    empty = caption_words({"a": "", "b": "..."}, vocabulary=["a"])
    assert empty.lengths == {0: 2}
    assert (empty.most_used, empty.unknown_words, empty.repeating) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a man on a bench on a bench", True),
        ("black and white and red", False),
        ("very very big", True),
        ("a white dog and a white dog run", True),
        ("a man and a woman", False),
        ("a dog with a ball with one dog", False),
        ("dog dog", True),
        ("dog", False),
        ("", False),
    ],
)
def test_repeats(caption: str, repeats: bool) -> None:
    assert repeats_itself(tuple(caption.split())) == repeats


@given(st.lists(st.sampled_from("abc"), max_size=9))
def test_a_repeat_is_what_a_search_over_all_spans_finds(words: list[str]) -> None:
    spans = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    found = any(
        words[i:j] == words[k:m]
        for i, j in spans
        for k, m in spans
        if k == j or (k == j + 1 and j - i >= 2)
    )
    assert repeats_itself(tuple(words)) == found


def test_a_copy_is_a_copy_whatever_its_case_and_period() -> None:
    assert copied_share(["a dog runs", "a dog sits"], ["A dog runs ."]) == 0.5
    assert copied_share(["can not", "gonna go"], ["Cannot!", "gon na go"]) == 1.0


def test_equal_words_have_equal_letters(shared: Path) -> None:
    """What makes it enough to tokenize the training captions whose letters are wanted."""
    data = flickr8k(root=str(shared / "flickr8k"), split_seed=0, skip_rejected=False)
    captions = [caption for image in data.split("val") for caption in image.captions]
    letters: dict[tuple[str, ...], str] = {}
    for caption in captions:
        assert letters.setdefault(tuple(tokenize(caption)), letters_of(caption)) == letters_of(
            caption
        )
    assert len(letters) > 4_900
    assert copied_share(captions, captions) == 1.0


def test_sentences_are_equal_when_they_say_the_same() -> None:
    assert sentences_of(["A dog.", "a dog"]) == [("a", "dog")] * 2
