"""The draw: by image, in Flickr8k's proportions, stable under order and loss."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showtell.data.splits import absent_splits, draw_splits, settle, split_named
from showtell.errors import UserError
from showtell.types import SPLITS

NAMES = [f"{number}.jpg" for number in range(8091)]


def test_the_draw_from_all_of_flickr8k_has_the_official_sizes():
    assert Counter(draw_splits(NAMES, seed=1).values()) == {
        "train": 6000,
        "val": 1000,
        "test": 1091,
    }


def test_the_seed_decides_and_the_order_does_not():
    draw = draw_splits(NAMES, seed=1)
    assert draw_splits(NAMES[::-1], seed=1) == draw
    moved = sum(draw[name] != split for name, split in draw_splits(NAMES, seed=2).items())
    # Two independent draws agree on .7416^2 + .1236^2 + .1348^2 = 58.3 % of the images.
    assert moved / len(NAMES) == pytest.approx(0.417, abs=0.03)


def test_losing_one_image_moves_hardly_any_other():
    draw = draw_splits(NAMES, seed=1)
    without = draw_splits(NAMES[1:], seed=1)
    assert sum(draw[name] != split for name, split in without.items()) <= 2


@given(st.integers(min_value=3, max_value=500), st.integers())
def test_every_split_gets_an_image_and_every_image_a_split(total, seed):
    draw = draw_splits(NAMES[:total], seed=seed)
    assert set(draw) == set(NAMES[:total])
    assert set(draw.values()) == set(SPLITS)


def test_two_images_are_too_few():
    with pytest.raises(UserError, match="2 images are too few to draw train, val and test"):
        draw_splits(["a.jpg", "b.jpg"], seed=0)


@given(
    st.permutations([("a", "train"), ("a", "test"), ("b", "val"), ("b", "train"), ("c", "train")])
)
def test_an_image_claimed_twice_stays_in_the_split_that_measures(claims):
    assert settle(claims) == {"a": "test", "b": "val", "c": "train"}


def test_a_split_is_absent_when_none_of_its_images_is_there():
    membership = dict.fromkeys("ab", "train") | dict.fromkeys("cd", "test") | {"e": "val"}
    assert absent_splits(membership, ["a"]) == {"test"}  # one single val image is a loss instead
    assert absent_splits(membership, "ace") == frozenset()


@pytest.mark.parametrize(
    ("word", "split"),
    [("restval", "train"), (" Dev ", "val"), ("valid", "val"), ("TEST", "test"), ("tset", None)],
)
def test_words_for_splits(word, split):
    assert split_named(word) == split
