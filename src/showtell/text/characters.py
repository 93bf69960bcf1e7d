"""The kinds of characters that English tokenization distinguishes.

`KIND` maps every non-ASCII character to one representative of its kind, so that the rules of
`showtell.text.ptb` stay readable and do not depend on the Unicode version of the running Python.
"""

from __future__ import annotations

import unicodedata

# A non-ASCII letter, digit and combining mark; a symbol that is always a token of its own; a
# character that the tokenizer drops; one that it drops and that has length two in Java (UTF-16).
_LETTER, _DIGIT, _MARK, _SYMBOL = "Ж", "٣", "\u0301", "§"
_DROPPED, _DROPPED_PAIR = "\x01", "\U00010000"

# Kinds with few members, the first being the representative. 0x80-0x9f are Windows-1252.
_SMALL_KINDS = (
    "\u3000\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a",  # wide spaces
    "\xa0",  # non-breaking space
    "\xad",  # soft hyphen
    "\u2019\x92",  # closing single quotes and apostrophes
    "\u2018\x91\u201b",  # opening single quotes
    "\u201c\x93\x94\u201d\u201a\u201e\u201f\u2039\u203a\xab\xbb",  # all other quotes
    "\u2014\x96\x97\u2013\u2015",  # dashes
    "\u2026\x85",  # ellipsis
    "\u2010\u2011\u058a",  # hyphens
    "\u2044",  # fraction slash
    "\u066b\u066c",  # Arabic decimal and thousands separators
    "、",  # ideographic comma
    "⁺⁻₊₋",
    "²¹³⁰⁴⁵⁶⁷⁸⁹",
    "₂₀₁₃₄₅₆₇₈₉",
)

# The large kinds as inclusive ranges of hexadecimal code points.
# The Java tokenizer's tables stop at Unicode 6.3: it drops newer letters ...
_YOUNG_LETTERS = (
    "37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 "
    "cdd d04 d54-d56 d5f de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd "
    "16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f "
    "2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe "
    "a9e0-a9e4 a9e6-a9fe aa7e-aa7f ab30-abbf"
)
# ... and treats these, which are marks since Unicode 9, as letters.
_FORMER_LETTERS = "1885-1886"
# Marks that may occur inside a word, like letters.
_WORD_MARKS = (
    "2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf "
    "5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 "
    "7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 "
    "a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 "
    "d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"
)
_LONE_SYMBOLS = (
    "80 a1-a9 ac ae-b4 b6-b9 bc-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 "
    "61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 2020-2023 2030-2038 "
    "203b 203e-2042 207c-207e 208c-208e 20a0 20a4 20ac 2100-2101 2103-2106 2108-2109 2114 "
    "2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2153-215e "
    "2190-2bff 3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)


def _codepoints(ranges: str) -> frozenset[int]:
    bounds = ([int(end, 16) for end in item.split("-")] for item in ranges.split())
    return frozenset(point for bound in bounds for point in range(bound[0], bound[-1] + 1))


class _Kind(dict[int, str]):
    """Code point -> representative of its kind, filled on demand; for ``str.translate``."""

    def __init__(self) -> None:
        super().__init__({point: chr(point) for point in range(0x80)})
        for representative, ranges in (
            (_SYMBOL, _LONE_SYMBOLS),
            (_MARK, _WORD_MARKS),
            (_LETTER, _FORMER_LETTERS),
            (_DROPPED, _YOUNG_LETTERS),
        ):
            self.update(dict.fromkeys(_codepoints(ranges), representative))
        self.update({ord(member): kind[0] for kind in _SMALL_KINDS for member in kind})

    def __missing__(self, point: int) -> str:
        self[point] = kind = _classify(point)
        return kind


def _classify(point: int) -> str:
    if point > 0xFFFF:
        return _DROPPED_PAIR
    category = unicodedata.category(chr(point))
    if category[0] == "L":
        return _LETTER
    return _DIGIT if category == "Nd" else _DROPPED


KIND = _Kind()
