"""Captions to words and back: the one tokenizer of training, decoding and scoring.

`tokenize` gives exactly the words on which the COCO caption evaluation computes its scores: the
PTB tokenizer of pycocoevalcap (``-preserveLines -lowerCase``, then its list of punctuation
removed), without the Java process, so that a vocabulary, a reference and a generated caption can
never disagree about what a word is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from showtell.text.ptb import lex

# The evaluation's own list. It also names -LRB- and its kin, but tokens are lower case by then,
# so "-lrb-" stays a word: published scores count it.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# One caption is one line. Java's tokenizer ends a line at each of these, which shifts every later
# caption of a batch to the wrong image; here they are white space.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))

_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_SPLIT_OFF = re.compile(r" (?=(?:n't|'(?:s|m|d|re|ve|ll))(?: |$))")
_SPLIT_WORDS = re.compile(r"\b(can not|(?:gon|wan) na|got ta|(?:gim|lem) me)\b")


def tokenize(text: str) -> list[str]:
    """The words of one caption as the COCO evaluation counts them, in lower case.

    Empty for a caption without words. A word may hold a non-breaking space (``1 1/2``).
    """
    if not text.isprintable():  # which no line end is; translating costs as much as the words
        text = text.translate(_LINE_ENDS)
    return [token for token in lex(text) if token not in _PUNCTUATION]


def detokenize(tokens: Sequence[str]) -> str:
    """The words as a person would write them: ``a dog 's ball`` becomes ``a dog's ball``.

    ``tokenize`` takes the text back to the same words; where joining some of them would not
    survive that, they stay apart.
    """
    apart = " ".join(map(_keep_period, tokens))
    joined = _SPLIT_WORDS.sub(lambda words: words[0].replace(" ", ""), _SPLIT_OFF.sub("", apart))
    for token, bracket in _BRACKETS.items():
        joined = joined.replace(token, bracket)
    joined = re.sub(r"([(\[{]) | ([)\]}])", r"\1\2", joined)
    return joined if joined == apart or tokenize(joined) == list(tokens) else apart


def _keep_period(token: str) -> str:
    # "bat." is a word only before a comma; an abbreviation is one anywhere.
    return token + "," if token.endswith(".") and tokenize(token) != [token] else token
