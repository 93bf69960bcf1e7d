"""Penn Treebank tokens as the COCO caption evaluation sees them, without Java.

The evaluation runs Stanford's PTB tokenizer of 2014 and then lower-cases. That tokenizer takes,
at every position, the rule that matches the most characters (counting what a rule demands to
*follow* the token), and the earliest rule among equals. The same here: each rule is one regular
expression, group 1 is the token, and the rest of the match is what must follow. The rules were
written from observed behaviour and are held equal to the Java program by the tests.

Characters outside ASCII are first folded to one representative of their kind (`_Fold`), so that
the rules stay readable and independent of the Unicode version of the running Python.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# --- Characters -------------------------------------------------------------------------------

# Representatives: a letter, a digit and a combining mark beyond ASCII, a symbol that is always a
# token of its own, and a character the tokenizer drops.
_LETTER, _DIGIT, _MARK, _SYMBOL, _DROPPED = "Ж", "٣", "\u0301", "§", "\x01"

# Kinds the rules tell apart; every member is folded to the first.
_KINDS = (
    "\u3000\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a",  # wide spaces
    "\xa0",
    "\xad",
    "’\x92",
    "‘\x91\u201b",
    "“\x93\x94”\u201a\u201e\u201f‹›«»",
    "—\x96\x97–\u2015",
    "…\x85",
    "\u2010\u2011\u058a",
    "⁄",
    "٫٬",
    "、",
    "⁺⁻₊₋",
    "²¹³⁰⁴⁵⁶⁷⁸⁹",
    "₂₀₁₃₄₅₆₇₈₉",
)

# Java's tables stop at Unicode 6.3: later letters are unknown to it and dropped.
_YOUNG_LETTERS = (
    "37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 "
    "cdd d04 d54-d56 d5f de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 "
    "170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f "
    "31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe a9e0-a9e4 "
    "a9e6-a9fe aa7e-aa7f ab30-abbf"
)
# Marks that may stand inside a word, beside the letters.
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


class _Fold(dict[int, str]):
    """Code point -> representative of its kind, filled on demand (for ``str.translate``)."""

    def __init__(self) -> None:
        super().__init__({point: chr(point) for point in range(0x80)})
        self.update({ord(member): kind[0] for kind in _KINDS for member in kind})
        self.update(dict.fromkeys(_codepoints(_LONE_SYMBOLS) - self.keys(), _SYMBOL))
        self.update(dict.fromkeys(_codepoints(_YOUNG_LETTERS), _DROPPED))
        self.update(dict.fromkeys(_codepoints(_WORD_MARKS), _MARK))

    def __missing__(self, point: int) -> str:
        self[point] = kind = self._classify(point)
        return kind

    @staticmethod
    def _classify(point: int) -> str:
        if point > 0xFFFF:  # Java reads two surrogates and drops both
            return _DROPPED
        category = unicodedata.category(chr(point))
        if category[0] == "L":
            return _LETTER
        return _DIGIT if category == "Nd" else _DROPPED


_FOLD = _Fold()

# --- Building blocks of the rules -------------------------------------------------------------

_L = r"[A-Za-zЖ]"
_N = r"[0-9٣]"
_LN = r"[A-Za-z0-9Ж٣]"
_A = r"[A-Za-z]"
_AN = r"[A-Za-z0-9]"
_SPACE = r"[ \t\xa0\u3000]"
_SPACE_OR_END = r"[ \t\xa0\u3000\n]"
_APOSTROPHE = r"(?:['’]|(?i:&apos;))"
_TICK = rf"(?:{_APOSTROPHE}|[`‘])"  # whatever people type for an apostrophe
_PAUSE = r"[,;:、]"
_ACCENTED = r"&[aeiouAEIOU](?i:acute|grave|uml);"

_WORD_PART = rf"(?:[A-Za-zЖ\xad\u0301]|{_ACCENTED})(?:[A-Za-z0-9Ж٣\xad\u0301]|{_ACCENTED})*"
_WORD = rf"(?:{_WORD_PART}(?:[.!?]{_WORD_PART})*)"
_NUMBER = rf"(?:{_N}+(?:[.:,\xad٫]{_N}+)*|(?:[.:,\xad٫]{_N}+)+)"
_ACRONYM = rf"(?:{_A}(?:\.{_A})+|(?i:canada|sino|korean|eu|japan|non)-[Uu]\.[Ss]|[Uu]\.[Ss]\.-(?i:u\.k|u\.s\.s\.r))"
_HYPHENATED = rf"(?:{_AN}[A-Za-z0-9.,\xad]*(?:-(?:{_A}(?:\.{_A})+\.|[A-Za-z0-9\xad]+))+)"
_ELIDED = rf"(?:[dDoOlL]{_TICK}{_LN})"
_COMPOUND = rf"(?:{_ELIDED}?{_LN}+(?:[-_\u2010]{_ELIDED}?{_LN}+)*)"
_FIRM = rf"(?:[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+)"
_AUXILIARY = rf"{_TICK}(?i:re|ve|ll|[msd])"

_WEB_PATH = r"""(?:/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-])?"""
_MAIL_NAME = r"""[^ \t\n\f\r"<>|()\xa0]"""

# Abbreviations that keep their period: always, only when capitalised, only before a number.
_ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst attys? aug ave bancorp bhd bldg blvd brig "
    "bros calif capt cf cie co?mdr cos? col colo conn corp cpl ct dak dec dept det drs? elec ens "
    "esq est etc ext feb fla fri ft ga gen govs? hon inc ind insp intl invt jan jos jr jul jun "
    "kans? ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms msgr mt natl "
    "neb nev nov oct okla penn pfc ph plc pres profs? pvt rd reps? rev rt sens? sept? seq sfc sgt "
    "spc sq sr ste? supts? sys tel tenn thu thurs treas tues? univ va vs vt wed wisc? wm wyo"
)
_CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBERING_ABBREVIATIONS = "art ca figs? nos? op pp prop"
# Words after which a lone initial is taken to end the sentence, so that its period comes off.
_SENTENCE_OPENERS = (
    "About According Additionally After An A As At But Earlier Here Her However He If In It Last "
    "Many More Mr. Ms. Now Once One Other Our She Since Some So Such That Their There These Then "
    "They The This What When While We Yet You"
)


def _any(words: str, *, capitalised: bool = False) -> str:
    """An alternation of words, case-insensitive save for a first letter that must be a capital."""
    if capitalised:
        return "|".join(rf"{w[0]}(?i:{w[1:]})".replace(".", r"\.") for w in words.split())
    return rf"(?i:{words.replace(' ', '|')})"


# --- What becomes of a matched token ----------------------------------------------------------

_NORMAL_QUOTES = str.maketrans(
    {**dict.fromkeys("‘\x91\u201b‹", "`"), **dict.fromkeys("’\x92›", "'")}
    | {**dict.fromkeys("“\x93«", "``"), **dict.fromkeys('”\x94»"', "''")}
)
_NORMAL_BRACKETS = str.maketrans({"(": "-LRB-", ")": "-RRB-", " ": "\xa0"})
_NORMAL_SYMBOLS = {"[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_NORMAL_SYMBOLS |= {"¢": "cents", "£": "#", **dict.fromkeys("\x80¤₠€", "$")}
_NORMAL_SYMBOLS |= {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_NORMAL_SYMBOLS |= {"(": "-LRB-", ")": "-RRB-"}


def _as_is(token: str) -> str:
    return token


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _quotes(token: str) -> str:
    return token.replace("&apos;", "'").replace("&quot;", "''").translate(_NORMAL_QUOTES)


def _ampersand(token: str) -> str:
    return re.sub("(?i)&amp;", "&", token)


def _unbreakable(token: str) -> str:
    return token.replace(" ", "\xa0")


def _brackets(token: str) -> str:
    return token.translate(_NORMAL_BRACKETS)


def _symbol(token: str) -> str:
    return _NORMAL_SYMBOLS.get(token, token)


def _nothing(token: str) -> str:
    return ""


def _to(replacement: str) -> Callable[[str], str]:
    return lambda token: replacement


def _dashes(token: str) -> str:
    return "--" if 3 <= len(token) <= 4 else token


@dataclass(frozen=True, slots=True)
class _Rule:
    match: Callable[[str, int], re.Match[str] | None]
    rewrite: Callable[[str], str]


def _rule(token: str, follows: str = "", rewrite: Callable[[str], str] = _as_is) -> _Rule:
    return _Rule(re.compile(rf"({token})(?:{follows})").match, rewrite)


# The earliest rule wins among those that match the same length.
_RULES = (
    _rule(r"(?i:c\+\+|[cf]\#)"),
    _rule(r"(?i:can)", "(?i:not)"),
    _rule(r"'(?i:t)", "(?i:was)"),
    _rule(rf"{_APOSTROPHE}(?i:t)", "(?i:is)"),
    _rule(r"(?i:gon|wan)", "(?i:na)"),
    _rule(r"(?i:got)", "(?i:ta)"),
    _rule(r"(?i:gim|lem)", "(?i:me)"),
    _rule(r"<[!?][A-Za-z-][^>\r\n]*>", rewrite=_unbreakable),
    _rule(
        r"""<[A-Za-z][\w:.-]*(?:[ ]+[A-Za-z][\w:.-]*(?:[ ]*=[ ]*(?:'[^']*'|"[^"]*"))?)*[ ]*/?[ ]*>""",
        rewrite=_unbreakable,
    ),
    _rule(r"</[A-Za-z][\w:.-]*[ ]*>", rewrite=_unbreakable),
    _rule(r"(?i:&(?:MD|mdash|ndash);)|—", rewrite=_to("--")),
    _rule(r"(?i:&amp;)", rewrite=_to("&")),
    _rule(r"(?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|\#[0-9]+);)"),
    _rule(_WORD, _AUXILIARY, _without_soft_hyphens),
    _rule(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", rf"(?i:n){_TICK}(?i:t)", _without_soft_hyphens),
    _rule(_WORD, rewrite=_without_soft_hyphens),
    # Words whose apostrophe belongs to them.
    _rule(rf"{_APOSTROPHE}(?i:n){_APOSTROPHE}?"),
    _rule(rf"[lLdDjJ]{_APOSTROPHE}"),
    _rule(rf"(?i:dunkin|somethin|ol){_APOSTROPHE}"),
    _rule(rf"{_APOSTROPHE}(?:(?i:em|till?|cause)|[2-9]0(?i:s))"),
    _rule(rf"[A-HJ-XZn]{_TICK}{_L}{{2,}}"),
    _rule(rf"{_L}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]{_L}*"),
    _rule(r"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"),
    _rule(rf"(?i:o){_TICK}(?i:o)"),
    _rule(rf"(?i:y){_APOSTROPHE}", _L),
    # The web.
    _rule(r"""(?i:https?)://[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]"""),
    _rule(rf"""(?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_WEB_PATH}"""),
    _rule(
        rf"""(?:[^ \t\n\f\r"`'<>|.!?(){{}},-_$]+\.)+(?i:com|net|org|edu){_WEB_PATH}""",
    ),
    _rule(
        rf"(?:(?i:&lt;)|<)?(?i:mailto:)?[a-zA-Z0-9._%+-]+@[A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9]"
        r"(?:(?i:&gt;)|>)?"
    ),
    _rule(r"@[a-zA-Z_][a-zA-Z_0-9]*"),
    _rule(rf"\#{_WORD}"),
    _rule(_AUXILIARY, "[^A-Za-z]", _quotes),
    _rule(rf"(?i:n){_TICK}(?i:t)", "[^A-Za-z]", _quotes),
    # Numbers.
    _rule(rf"{_N}{{1,2}}[-/]{_N}{{1,2}}[-/]{_N}{{2,4}}"),
    _rule(rf"[-+]?{_NUMBER}", rewrite=_without_soft_hyphens),
    _rule("⁺?(?:²+|₂+)"),
    _rule(rf"(?:{_N}{{1,4}}[- \xa0])?{_N}{{1,4}}(?:\\?/|⁄){_N}{{1,4}}", rewrite=_unbreakable),
    _rule(r"-(?i:[rl][rcs]b)-|(?i:c\.d\.s|pro-|anti-)"),
    _rule(r"(?i:s)(?:&|(?i:&amp;))(?i:p-500|ls)", rewrite=_ampersand),
    _rule(rf"(?i:cap){_APOSTROPHE}(?i:n)|(?i:c){_APOSTROPHE}(?i:est)"),
    _rule(rf"{_AN}+(?:-{_A}+){{0,2}}(?:\\?/{_AN}+(?:-{_A}+){{0,2}}){{1,2}}"),
    _rule(r"[A-Z]*\$"),
    # Abbreviations and acronyms.
    _rule(_A, rf"\.{_SPACE}+(?:{_any(_SENTENCE_OPENERS, capitalised=True)}|<[^>]*>){_SPACE}"),
    _rule(rf"(?:{_ACRONYM}|{_A}|{_any(_ABBREVIATIONS)})\."),
    _rule(
        rf"(?:{_any(_CAPITALISED_ABBREVIATIONS, capitalised=True)}|[Pp]?[Pp]t[ye][Ss]?|[Mm][ft][Gg])\."
    ),
    _rule(r"(?i:(?:ed|ph)\.d|a\.k\.a|treas)\."),
    _rule(rf"{_any(_NUMBERING_ABBREVIATIONS)}\.", rf"{_SPACE_OR_END}?{_N}"),
    _rule(r"(?i:pty|pte|pvt|co)\.", rf"{_SPACE}(?i:ltd|lim)"),
    _rule(_ACRONYM, _SPACE_OR_END),
    _rule(rf"{_APOSTROPHE}[0-9][0-9]", _SPACE_OR_END),
    _rule(rf"{_WORD}\.", _PAUSE, _without_soft_hyphens),
    _rule(
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
        r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        rewrite=_brackets,
    ),
    _rule(
        r"(?:\+\+?)?[0-9]{2,4}[- \xa0][0-9]{3,4}[- \xa0]?[0-9]{3,5}"
        r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        rewrite=_brackets,
    ),
    _rule(r'"', "[A-Za-z0-9$]", _to("``")),
    _rule(r'"|(?i:&quot;)', rewrite=_quotes),
    _rule(r"0(?i:x)7(?i:f)", rewrite=_nothing),
    _rule(r"<|&lt;", rewrite=_to("<")),
    _rule(r">|&gt;", rewrite=_to(">")),
    _rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z]", _brackets),
    _rule(
        r"[\^x=~<>]\.\[\^x=~<>\]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)"
        r"|\([\^x=~<>']-[\^x=~<>'`]\)",
        rewrite=_brackets,
    ),
    _rule(r"[\[\](){}§]", rewrite=_symbol),
    _rule("-+", rewrite=_dashes),
    _rule(r"\.{3,5}|…", rewrite=_to("...")),
    _rule(r"(?:\.[ \xa0]){2,4}\.", rewrite=_to("...")),
    _rule(r"@+|\#+|_+|\*+|(?:\\\*){1,3}|[?!]+|[.,;:、=/+%&~^|\\⁄]"),
    # Compounds.
    _rule(rf"{_HYPHENATED}\.", _PAUSE, _without_soft_hyphens),
    _rule(_HYPHENATED, rewrite=_without_soft_hyphens),
    _rule(rf"{_COMPOUND}\.", _PAUSE),
    _rule(_COMPOUND),
    _rule(rf"{_FIRM}\.", _PAUSE, _ampersand),
    _rule(_FIRM, rewrite=_ampersand),
    # Quotes, last because everything above may own an apostrophe.
    _rule("'", r"[A-Za-z][^ \t\n\r\xa0]", _to("`")),
    _rule(_AUXILIARY, rewrite=_quotes),
    _rule(rf"{_APOSTROPHE}|''|[`‘’“]{{1,2}}", rewrite=_quotes),
    _rule("<<|>>"),
    _rule("(?i:&nbsp;)", rewrite=_nothing),
)

_PLAIN = re.compile(r"([A-Za-z]+)(?=[ \n])")
_SPLIT_PLAIN = frozenset({"cannot", "gonna", "wanna", "gotta", "gimme", "lemme"})
_BLANKS = re.compile(r"[ \t\n\xa0\u3000\x01‐]*")


def lex(line: str) -> list[str]:
    """The lower-cased PTB tokens of one line of text, punctuation included."""
    shadow = (line if line.isascii() else line.translate(_FOLD)) + "\n"
    tokens: list[str] = []
    position, end = 0, len(line)
    while (position := _BLANKS.match(shadow, position).end()) < end:  # type: ignore[union-attr]
        plain = _PLAIN.match(shadow, position)
        if plain and plain[1].lower() not in _SPLIT_PLAIN:
            stop, token = plain.end(), plain[1]
        else:
            stop, token = _longest(line, shadow, position)
        tokens.append(token.lower())
        position = stop
    return [token for token in tokens if token]


def _longest(line: str, shadow: str, position: int) -> tuple[int, str]:
    """Where the token at ``position`` ends and what it is, by the rule that matches the most."""
    reach, best, rewrite = position, position + 1, _nothing
    for rule in _RULES:
        match = rule.match(shadow, position)
        if match and match.end() > reach:
            reach, best, rewrite = match.end(), match.end(1), rule.rewrite
    return best, rewrite(line[position:best])
