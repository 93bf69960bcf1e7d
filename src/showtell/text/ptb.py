"""Penn Treebank tokenization as in the COCO caption evaluation, without Java.

The evaluation runs Stanford's PTB tokenizer of 2014 and then lower-cases. At every position that
tokenizer applies the rule with the longest match (including what a rule requires to *follow* the
token), and the earliest rule among equals. So does this one: each rule is a regular expression
whose group 1 is the token; the rest of the match is what must follow. The rules were written from
observed behaviour, and tests compare them with the Java program.

Rules are matched against a *shadow* of the text, in which every non-ASCII character is replaced by
the representative of its kind (`showtell.text.characters`); tokens are cut from the text itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

from showtell.text.characters import KIND

# --- Building blocks of the rules -------------------------------------------------------------

# In the shadow Ж is any non-ASCII letter, ٣ any such digit, \u0301 a mark within a word, \u2019 and
# \u2018 closing and opening single quotes, \u201c another quote, \u3000 a wide space, § a symbol.
_L = r"[A-Za-zЖ]"
_N = r"[0-9٣]"
_LN = r"[A-Za-z0-9Ж٣]"
_A = r"[A-Za-z]"
_AN = r"[A-Za-z0-9]"
_SPACE = r"[ \t\xa0\u3000]"
_SPACE_OR_END = r"[ \t\xa0\u3000\n]"
_APOSTROPHE = r"(?:['\u2019]|(?i:&apos;))"
_TICK = rf"(?:{_APOSTROPHE}|[`\u2018])"  # whatever is typed for an apostrophe
_PAUSE = r"[,;:、]"
_ACCENTED = r"&[aeiouAEIOU](?i:acute|grave|uml);"

_WORD_LETTER = rf"(?:[A-Za-zЖ\xad\u0301]|{_ACCENTED})"
_WORD_CHARACTER = rf"(?:[A-Za-z0-9Ж٣\xad\u0301]|{_ACCENTED})"
_WORD_PART = rf"{_WORD_LETTER}{_WORD_CHARACTER}*"
_WORD = rf"(?:{_WORD_PART}(?:[.!?]{_WORD_PART})*)"
_NUMBER = rf"(?:{_N}+(?:[.:,\xad\u066b]{_N}+)*|(?:[.:,\xad\u066b]{_N}+)+)"
_ACRONYM = (
    rf"(?:{_A}(?:\.{_A})+|(?i:canada|sino|korean|eu|japan|non)-(?i:u\.s)"
    r"|(?i:u\.s)\.-(?i:u\.k|u\.s\.s\.r))"
)
_HYPHENATED = rf"(?:{_AN}[A-Za-z0-9.,\xad]*(?:-(?:{_A}(?:\.{_A})+\.|[A-Za-z0-9\xad]+))+)"
_ELIDED = rf"(?:[dDoOlL]{_TICK}{_LN})"
_COMPOUND = rf"(?:{_ELIDED}?{_LN}+(?:[-_\u2010]{_ELIDED}?{_LN}+)*)"
_FIRM = r"(?:[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+)"
_ATTRIBUTE = r"""[A-Za-z][A-Za-z0-9_:.-]*(?:[ ]*=[ ]*(?:'[^']*'|"[^"]*"))?"""
_TAG = (
    rf"<(?:[!?][A-Za-z-][^>\r\n]*|[A-Za-z][A-Za-z0-9_:.-]*(?:[ ]+{_ATTRIBUTE})*[ ]*/?"
    r"|/[A-Za-z][A-Za-z0-9_:.-]*)[ ]*>"
)
_AUXILIARY = rf"{_APOSTROPHE}(?i:re|ve|ll|[msd])"

# A character beyond the basic plane has length two in Java, enough for an address by itself.
_WEB_END = r"""[^ \t\n\f\r"<>|.!?(){},-]"""
_WEB_PATH = rf"""(?:/(?:[^ \t\n\f\r"<>|()]+{_WEB_END}|\U00010000))?"""

# Abbreviations that keep their period: those that end a phrase (and keep it even if another
# character follows directly), titles, those that must be capitalised, those before a number.
_PHRASE_ABBREVIATIONS = (
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif colo conn corp cos? ct dak dec esq "
    "est etc ext feb fla fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mo mon "
    "mont neb nev nov oct okla penn plc rd rt sept? seq sq sr sys tel tenn thu thurs tues? univ va "
    "vt wed wisc? wyo"
)
_TITLE_ABBREVIATIONS = (
    "adj adm adv alex assoc asst attys? ave brig capt cf cie co?mdr col cpl dept det drs? elec ens "
    "ft gen govs? hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph "
    "pres profs? pvt reps? rev sens? sfc sgt spc ste? supts? treas vs wm"
)
_CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBERING_ABBREVIATIONS = "art ca figs? nos? op pp prop"
# Extensions of file names that the tokenizer keeps whole.
_FILE_TYPES = (
    "bat bmp class cgi cpp c docx? dll exe gif gz html? h jar java jpe?g mov mp3 pdf php pl png "
    "ppt ps py sql tar txt wav xml x zip"
)
# Words before which a single initial is taken to end a sentence, so that its period splits off.
_SENTENCE_OPENERS = (
    "About According Additionally After An A As At But Earlier Here Her However He If In It Last "
    "Many More Mr. Ms. Now Once One Other Our She Since Some So Such That Their There These Then "
    "They The This What When While We Yet You"
)


def _any(words: str, *, capitalised: bool = False) -> str:
    """An alternation of words, case-insensitive except for a capital first letter if asked."""
    if capitalised:
        return "|".join(rf"{w[0]}(?i:{w[1:]})".replace(".", r"\.") for w in words.split())
    return rf"(?i:{words.replace(' ', '|')})"


_ENDING = (
    rf"(?:{_any(_PHRASE_ABBREVIATIONS)}|{_any(_CAPITALISED_ABBREVIATIONS, capitalised=True)}"
    r"|[Pp]?[Pp]t[ye][Ss]?|(?i:ed|ph)\.[Dd])\."
)


# --- How a matched token is rewritten ---------------------------------------------------------

_NORMAL_QUOTES = str.maketrans(
    {**dict.fromkeys("\u2018\x91\u201b\u2039", "`"), **dict.fromkeys("\u2019\x92\u203a", "'")}
    | {**dict.fromkeys("\u201c\x93\xab", "``"), **dict.fromkeys('\u201d\x94\xbb"', "''")}
)
_NORMAL_PARENTHESES = str.maketrans({"(": "-LRB-", ")": "-RRB-", " ": "\xa0"})
_NORMAL_SYMBOLS = (
    {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
    | {"¢": "cents", "£": "#", **dict.fromkeys("\x80¤₠€", "$")}
    | {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
)


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


def _parentheses(token: str) -> str:
    return token.translate(_NORMAL_PARENTHESES)


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
    needs: str


def _rule(
    token: str, follows: str = "", rewrite: Callable[[str], str] = _as_is, needs: str = ""
) -> _Rule:
    """A rule; it is tried only if the text contains ``needs``, which saves long lookaheads."""
    return _Rule(re.compile(rf"({token})(?:{follows})").match, rewrite, needs)


# The earliest rule wins among those that match the same length.
_RULES = (
    _rule(r"(?i:c\+\+|[cf]\#)"),
    _rule(r"(?i:can)", "(?i:not)"),
    _rule(r"'(?i:t)", "(?i:was)"),
    _rule(rf"{_APOSTROPHE}(?i:t)", "(?i:is)"),
    _rule(r"(?i:gon|wan)", "(?i:na)"),
    _rule(r"(?i:got)", "(?i:ta)"),
    _rule(r"(?i:gim|lem)", "(?i:me)"),
    _rule(_TAG, rewrite=_unbreakable, needs=">"),
    _rule(r"(?i:&(?:MD|mdash|ndash);)|—", rewrite=_to("--")),
    _rule(r"(?i:&amp;)", rewrite=_to("&")),
    _rule(r"(?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|\#[0-9]+);)"),
    _rule(_WORD, _AUXILIARY, _without_soft_hyphens),
    _rule(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", rf"(?i:n){_TICK}(?i:t)", _without_soft_hyphens),
    _rule(_WORD, rewrite=_without_soft_hyphens),
    # Words that contain their apostrophe.
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
    _rule(rf"""(?i:https?)://(?:[^ \t\n\f\r"<>|(){{}}]+{_WEB_END}|\U00010000)"""),
    _rule(rf"""(?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_WEB_PATH}"""),
    _rule(rf"""(?:[^ \t\n\f\r"`'<>|.!?(){{}},-_$]+\.)+(?i:com|net|org|edu){_WEB_PATH}"""),
    _rule(
        r"""(?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\xa0]*"""
        r"""@(?:[^ \t\n\f\r"<>|(){}.\xa0]+\.)*[^ \t\n\f\r"<>|(){}.\xa0]+(?:(?i:&gt;)|>)?""",
        needs="@",
    ),
    _rule(r"@[a-zA-Z_][a-zA-Z_0-9]*"),
    _rule(rf"\#{_WORD_LETTER}+"),
    _rule(_AUXILIARY, "[^A-Za-z]", _quotes),
    _rule(rf"(?i:n){_TICK}(?i:t)", "[^A-Za-z]", _quotes),
    # Numbers.
    _rule(rf"{_N}{{1,2}}[-/]{_N}{{1,2}}[-/]{_N}{{2,4}}"),
    _rule(rf"[-+]?{_NUMBER}", rewrite=_without_soft_hyphens),
    _rule("⁺?(?:²+|₂+)|⁺"),
    _rule(rf"(?:{_N}{{1,4}}[- \xa0])?{_N}{{1,4}}(?:\\?/|\u2044){_N}{{1,4}}", rewrite=_unbreakable),
    _rule(r"-(?i:[rl][rcs]b)-|(?i:c\.d\.s|pro-|anti-)"),
    _rule(r"(?i:s)(?:&|(?i:&amp;))(?i:p-500|ls)", rewrite=_ampersand),
    _rule(rf"(?i:cap){_APOSTROPHE}(?i:n)|(?i:c){_APOSTROPHE}(?i:est)"),
    _rule(rf"{_AN}+(?:-{_A}+){{0,2}}(?:\\?/{_AN}+(?:-{_A}+){{0,2}}){{1,2}}"),
    _rule(r"[A-Z]*\$"),
    # Abbreviations and acronyms.
    _rule(_A, rf"\.{_SPACE}+(?:{_any(_SENTENCE_OPENERS, capitalised=True)}|{_TAG}){_SPACE_OR_END}"),
    _rule(_ENDING, r"[\s\S]{2}"),
    _rule(_ENDING),
    _rule(rf"(?:{_ACRONYM}|{_A}|{_any(_TITLE_ABBREVIATIONS)}|[Mm][ft][Gg]|(?i:a\.k\.a))\."),
    _rule(rf"{_any(_NUMBERING_ABBREVIATIONS)}\.", rf"{_SPACE_OR_END}?{_N}"),
    _rule(r"(?i:pty|pte|pvt|co)\.", rf"{_SPACE}(?i:ltd|lim)"),
    _rule(
        rf"{_WORD_CHARACTER}+(?:\.{_WORD_CHARACTER}+)*\.{_any(_FILE_TYPES)}",
        rf"{_SPACE_OR_END}|[.?!,]",
    ),
    _rule(_ACRONYM, _SPACE_OR_END),
    _rule(rf"{_APOSTROPHE}[0-9][0-9]", _SPACE_OR_END),
    _rule(rf"{_WORD}\.", _PAUSE, _without_soft_hyphens),
    _rule(
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
        r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        rewrite=_parentheses,
    ),
    _rule(
        r"(?:\+\+?)?[0-9]{2,4}[- \xa0][0-9]{3,4}[- \xa0]?[0-9]{3,5}"
        r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        rewrite=_parentheses,
    ),
    _rule(r'"', "[A-Za-z0-9$]", _to("``")),
    _rule(r'"|(?i:&quot;)', rewrite=_quotes),
    _rule(r"<|(?i:&lt;)", rewrite=_to("<")),
    _rule(r">|(?i:&gt;)", rewrite=_to(">")),
    _rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _parentheses),
    _rule(
        r"[\^x=~<>]\.\[\^x=~<>\]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)"
        r"|\([\^x=~<>']-[\^x=~<>'`]\)",
        rewrite=_parentheses,
    ),
    _rule(r"[\[\](){}§]", rewrite=_symbol),
    _rule("-+", rewrite=_dashes),
    _rule(r"\.{3,5}|…", rewrite=_to("...")),
    _rule(r"(?:\.[ \xa0]){2,4}\.", rewrite=_to("...")),
    _rule(r"@+|\#+|_+|\*+|(?:\\\*){1,3}|[?!]+|[.,;:、=/+%&~^|\\\u2044]"),
    # Compounds.
    _rule(rf"{_HYPHENATED}\.", _PAUSE, _without_soft_hyphens, "-"),
    _rule(_HYPHENATED, rewrite=_without_soft_hyphens, needs="-"),
    _rule(rf"{_COMPOUND}\.", _PAUSE),
    _rule(_COMPOUND),
    _rule(rf"{_FIRM}\.", _PAUSE, _ampersand),
    _rule(_FIRM, rewrite=_ampersand),
    # Quotes, last because all rules above may include an apostrophe.
    _rule("'", r"[A-Za-z][^ \t\n\r\xa0]", _to("`")),
    _rule(_AUXILIARY, rewrite=_quotes),
    _rule(rf"''|[`\u2018\u2019\u201c]{{1,2}}|{_APOSTROPHE}", rewrite=_quotes),
    _rule("<<|>>"),
    _rule("(?i:&nbsp;)", rewrite=_nothing),
)

# A fast path for words of letters only, each followed by a space: most of every caption. Only the
# rules of the six contractions would change such words.
_WORD_ALONE = r"(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme)[ \n])[A-Za-z]+"
_PLAIN_WORDS = re.compile(rf"{_WORD_ALONE}(?: +{_WORD_ALONE})*(?=[ \n])")
_BLANKS = re.compile(r"(?:[ \t\n][ \t\n\xa0\u3000]*)?")
_NEEDS = sorted({rule.needs for rule in _RULES} - {""})


def lex(line: str) -> list[str]:
    """The lower-cased PTB tokens of one line of text, punctuation included."""
    shadow = _shadow(line)
    tokens: list[str] = []
    position, end = 0, len(line)
    while (position := _BLANKS.match(shadow, position).end()) < end:  # type: ignore[union-attr]
        plain = _PLAIN_WORDS.match(shadow, position)
        if plain:
            tokens += plain[0].lower().split()
            position = plain.end()
        elif " " not in line[position:] and line.isprintable():
            tokens += _tokens_of_last(line[position:])
            break
        else:
            position, token = _next_token(line, shadow, position)
            tokens.append(token)
    return [token for token in tokens if token]


@lru_cache(maxsize=2**14)  # many captions end in the same word and period
def _tokens_of_last(piece: str) -> tuple[str, ...]:
    """The tokens of a piece without spaces at the end of a line: they depend on it alone."""
    shadow = _shadow(piece)
    tokens = []
    position = 0
    while position < len(piece):
        position, token = _next_token(piece, shadow, position)
        tokens.append(token)
    return tuple(tokens)


def _shadow(line: str) -> str:
    return (line if line.isascii() else line.translate(KIND)) + "\n"


def _next_token(line: str, shadow: str, position: int) -> tuple[int, str]:
    """The end of the token at ``position`` and the token, by the rule with the longest match."""
    reach, best = position, position + 1  # without a rule the character is dropped
    rewrite: Callable[[str], str] = _nothing
    for rule in _rules_with("".join(need for need in _NEEDS if need in shadow)):
        match = rule.match(shadow, position)
        if match and match.end() > reach:
            reach, best, rewrite = match.end(), match.end(1), rule.rewrite
    return best, rewrite(line[position:best]).lower()


@cache
def _rules_with(present: str) -> tuple[_Rule, ...]:
    """The rules that can match a text that contains these characters."""
    return tuple(rule for rule in _RULES if rule.needs in present)
