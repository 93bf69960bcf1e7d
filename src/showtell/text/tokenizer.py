"""The tokenizer and detokenizer used everywhere: in training, decoding and scoring.

`tokenize` gives exactly the words that the COCO caption evaluation scores, those of
pycocoevalcap's PTB tokenizer (``-preserveLines -lowerCase``, then its list of punctuation
removed), without the Java process. So vocabulary, references and generated captions always agree
on what a word is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from showtell.text.ptb import lex

# The evaluation's own list. It also has -LRB- and the like, but tokens are lower-case by then, so
# "-lrb-" stays a word, also in published scores.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# A caption is one line. The Java tokenizer ends a line at each of these, which shifts all later
# captions of a batch to the wrong images; here they are white space.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))

_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_SPLIT_OFF = re.compile(r" (?=(?:n't|'(?:s|m|d|re|ve|ll))(?: |$))")
_SPLIT_WORDS = re.compile(r"\b(can not|(?:gon|wan) na|got ta|(?:gim|lem) me)\b")


def tokenize(text: str) -> list[str]:
    """The lower-case words of one caption, as the COCO evaluation counts them.

    Empty for a caption without words. A word may hold a non-breaking space (``1 1/2``).
    """
    if not text.isprintable():  # line ends are not; translating takes as long as tokenizing
        text = text.translate(_LINE_ENDS)
    return [token for token in lex(text) if token not in _PUNCTUATION]


def detokenize(tokens: Sequence[str]) -> str:
    """Join words to natural text: ``a dog 's ball`` becomes ``a dog's ball``.

    If ``tokenize`` would not restore the words from the joined text, they stay separated by spaces.
    """
    apart = " ".join(map(_keep_period, tokens))
    joined = _SPLIT_WORDS.sub(lambda words: words[0].replace(" ", ""), _SPLIT_OFF.sub("", apart))
    for token, bracket in _BRACKETS.items():
        joined = joined.replace(token, bracket)
    joined = re.sub(r"([(\[{]) | ([)\]}])", r"\1\2", joined)
    return joined if joined == apart or tokenize(joined) == list(tokens) else apart


def _keep_period(token: str) -> str:
    # "bat." is a token only before a comma; an abbreviation is one anywhere.
    return token + "," if token.endswith(".") and tokenize(token) != [token] else token
