"""Captions to words and back: the one tokenizer of training, decoding and scoring.

`tokenize` gives exactly the words on which the COCO caption evaluation computes its scores: the
PTB tokenizer of pycocoevalcap (``-preserveLines -lowerCase``, then its list of punctuation
removed), without the Java process, so that a vocabulary, a reference and a generated caption can
never disagree about what a word is.
"""

from __future__ import annotations

from showtell.text.ptb import lex

# The evaluation's own list. Tokens are lower case when it is applied, so its bracket names never
# match and "-lrb-" stays a word: published scores count it.
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
    + ["-LRB-", "-RRB-", "-LCB-", "-RCB-"]
)

# One caption is one line. Java's tokenizer ends a line at each of these, which shifts every later
# caption of a batch to the wrong image; here they are white space.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))


def tokenize(text: str) -> list[str]:
    """The words of one caption as the COCO evaluation counts them, in lower case.

    Empty for a caption without words. A word may hold a non-breaking space (``1 1/2``).
    """
    return [token for token in lex(text.translate(_LINE_ENDS)) if token not in _PUNCTUATION]
