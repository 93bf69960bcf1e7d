from __future__ import annotations

import pytest

from showtell.report.words import copied_share, sentences_of, word_statistics


def test_statistics_by_hand() -> None:
    captions = ["A dog runs .", "a dog runs", "two dogs", "a dog runs on the grass"]
    found = word_statistics(sentences_of(captions))
    assert found.captions == 4
    assert found.lengths == {3: 2, 2: 1, 6: 1}
    assert found.mean_words == pytest.approx(14 / 4)
    assert found.length_shares == {3: 50, 2: 25, 6: 25}
    assert found.distinct_words == 8
    assert found.distinct_share == 0.75
    assert found.most_frequent == (("a dog runs", 2),)


def test_an_empty_caption_has_no_words() -> None:
    assert word_statistics(sentences_of(["", "..."])).lengths == {0: 2}


def test_a_copy_is_a_copy_whatever_its_case_and_period() -> None:
    written = sentences_of(["a dog runs", "a dog sits"])
    assert copied_share(written, sentences_of(["A dog runs ."])) == 0.5
