"""Which words a captioner knows."""

from __future__ import annotations

from showtell.text.vocabulary import END, SPECIALS, UNKNOWN, Vocabulary


def test_words_are_ordered_by_count_and_then_by_letter() -> None:
    captions = [["b", "a", "c"], ["c", "a", "b"], ["c", "once"]]
    vocabulary = Vocabulary.from_captions(captions, min_count=2)
    assert vocabulary.words == ("c", "a", "b")
    assert vocabulary.counts == (3, 2, 2)
    assert vocabulary.encode(["a", "once"]) == [len(SPECIALS) + 1, UNKNOWN]


def test_special_tokens_within_captions_are_unknown() -> None:
    """Other programs write such marks into their captions."""
    captions = [["<begin>", "a", "dog", "<end>"], ["<begin>", "a", "cat", "<end>"]]
    vocabulary = Vocabulary.from_captions(captions, min_count=2)
    assert vocabulary.words == ("a",)
    ids = vocabulary.encode(captions[0])
    assert END not in ids
    assert ids[0] == ids[-1] == UNKNOWN
