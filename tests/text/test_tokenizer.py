from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from java_ptb import FIXTURE, HOSTILE, java_tokens, scrambled

from showtell.text import ptb
from showtell.text.tokenizer import detokenize, tokenize

# SHA-256 of Java's tokens of every caption: words joined by spaces, captions by newlines.
FLICKR8K_TOKENS = "ba13c26255870029eaa4116a5a1e01e677ef13264259776b7c57816f6a8e8df5"
COCO_TOKENS = "3eb8081c4b5eea900368b5f0ec4fa107e9537ad51467d1e80b107a5480700300"

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def _flickr8k(shared: Path) -> list[str]:
    path = shared / "flickr8k" / "Flickr8k_text" / "Flickr8k.token.txt"
    return [line.split("\t", 1)[1] for line in path.read_text("utf-8").splitlines()]


def _coco(shared: Path) -> list[str]:
    data = json.loads((shared / "reference" / "coco_fakecap.json").read_text("utf-8"))
    return [text for part in ("gts", "res") for texts in data[part].values() for text in texts]


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(" ".join(tokenize(t)) for t in texts).encode()).hexdigest()


def test_a_plain_caption_is_its_words_in_lower_case() -> None:
    assert tokenize("A child in a pink dress is climbing .") == [
        *("a", "child", "in", "a", "pink", "dress", "is", "climbing")
    ]


def test_every_flickr8k_caption_has_the_tokens_java_gives(shared: Path) -> None:
    captions = _flickr8k(shared)
    assert len(captions) == 35_005
    assert _digest(captions) == FLICKR8K_TOKENS


def test_every_coco_caption_has_the_tokens_java_gives(shared: Path) -> None:
    captions = _coco(shared)
    assert len(captions) == 6_005
    assert _digest(captions) == COCO_TOKENS


def test_the_recorded_answers_of_java_to_hostile_text() -> None:
    answers = json.loads(FIXTURE.read_text("ascii"))
    assert len(answers) > 1500
    wrong = [(text, tokenize(text), java) for text, java in answers if tokenize(text) != java]
    assert wrong == []


@pytest.mark.java
def test_the_running_java_agrees_on_hostile_and_scrambled_text() -> None:
    texts = [*HOSTILE, *scrambled(20_000, seed=1)]
    wrong = [
        (text, tokenize(text), java)
        for text, java in zip(texts, java_tokens(texts), strict=True)
        if tokenize(text) != java
    ]
    assert wrong == []


@pytest.mark.java
def test_the_running_java_agrees_on_every_single_character() -> None:
    points = [p for p in range(1, 0x10000) if not 0xD800 <= p < 0xE000 and chr(p) not in LINE_ENDS]
    texts = [f"a{chr(p)}b {chr(p)}5 {chr(p)}" for p in points]
    wrong = [
        (hex(point), tokenize(text), java)
        for point, text, java in zip(points, texts, java_tokens(texts), strict=True)
        if tokenize(text) != java
    ]
    assert wrong == []


@pytest.mark.java
def test_the_running_java_agrees_on_every_caption(shared: Path) -> None:
    captions = _flickr8k(shared) + _coco(shared)
    assert [tokenize(text) for text in captions] == java_tokens(captions)


@pytest.mark.parametrize("separator", LINE_ENDS)
def test_a_line_end_is_white_space(separator: str) -> None:
    assert tokenize(f"a dog{separator}runs{separator}") == ["a", "dog", "runs"]


def test_brackets_stay_words_as_in_published_scores() -> None:
    assert tokenize("(a) [b]") == ["-lrb-", "a", "-rrb-", "-lsb-", "b", "-rsb-"]


def test_special_tokens_of_a_decoder_are_ordinary_words() -> None:
    assert tokenize("<s> a <unk> dog </s>") == ["<s>", "a", "<unk>", "dog", "</s>"]


@pytest.mark.parametrize("text", ["", " ", ".", "...", "!", "' '", "\u200b"])
def test_text_without_words_has_no_tokens(text: str) -> None:
    assert tokenize(text) == []


def test_ten_thousand_words() -> None:
    assert tokenize("dog " * 10_000) == ["dog"] * 10_000


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_any_text_gives_tokens_without_plain_white_space(text: str) -> None:
    for token in tokenize(text):
        assert token and not set(token) & set(" \t\n\r\v\f\u2028\u2029")


def rule_by_rule(line: str) -> list[str]:
    """Tokens found without the short cuts for plain words and for endings seen before."""
    shadow = ptb._shadow(line)
    tokens, position = [], 0
    while (position := ptb._BLANKS.match(shadow, position).end()) < len(line):
        position, token = ptb._next_token(line, shadow, position)
        tokens.append(token)
    return [token for token in tokens if token]


WORDS = (
    "a dog runs Cannot gonna WANNA can't man's o'clock t-shirt st. U.S. a. Inc. The 1 1/2 555 1212 "
    ". .. - , ' \" `` &amp; &nbsp; <b> x@y.com http://a.b/c caf\u00e9 \u00bd \u2026"
)


@given(
    st.lists(st.sampled_from(WORDS.split()), max_size=7),
    st.sampled_from([" ", "  ", "\t", " \xa0", "\xa0", "\u3000", ""]),
    st.sampled_from(["", ".", " .", ",", " ", "\xa0"]),
)
@settings(max_examples=300)
def test_short_cuts_change_no_token(pieces: list[str], blank: str, end: str) -> None:
    line = blank.join(pieces) + end
    assert ptb.lex(line) == rule_by_rule(line)
    assert ptb.lex(f"a dog {line}") == rule_by_rule(f"a dog {line}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("a dog 's ball", "a dog's ball"),
        ("they do n't stop", "they don't stop"),
        ("we 're here", "we're here"),
        ("he can not go", "he cannot go"),
        ("a -lrb- red -rrb- ball", "a (red) ball"),
        ("slip 'n' slide", "slip 'n' slide"),
        ("", ""),
    ],
)
def test_detokenized_text_reads_well(words: str, text: str) -> None:
    assert detokenize(words.split()) == text


def test_words_that_joining_would_change_stay_apart() -> None:
    assert detokenize(["pan", "n't"]) == "pan n't"


def test_captions_survive_detokenizing(shared: Path) -> None:
    captions = _flickr8k(shared) + _coco(shared)
    hard = [text for text in captions if set(text) - set("abcdefghijklmnopqrstuvwxyzAT .")]
    for text in hard[::2] + captions[::10]:
        tokens = tokenize(text)
        assert tokenize(detokenize(tokens)) == tokens
