"""Scoring captions: ours beside pycocoevalcap's own path, called whole.

    python benchmarks/scores.py [--captions FILE]

FILE holds ``{"gts": {id: [references]}, "res": {id: [caption]}}``; without it 1,000 captions with
five references each are made up. BLEU, ROUGE-L and CIDEr are scored; METEOR is the same Java
process in both. pycocoevalcap's tokenizer is a Java process too, and is skipped where there is no
Java: its scorers then get our tokens.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from made_sets import sentences
from measure import Figure, Report, Timing, Work, parser, prepare, ratio, time_in_turns
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from showtell.metrics import score_captions
from showtell.metrics.java import find_java
from showtell.text.tokenizer import tokenize

METRICS = ("BLEU", "ROUGE-L", "CIDEr")
REFERENCES = 5
WHOLE, SCORERS = "pycocoevalcap, whole", "pycocoevalcap, our tokens"
FIRST, AGAIN, BLEU = "ours, new references", "ours, the same references", "ours, BLEU again"
Texts = dict[str, list[str]]


def made_texts(images: int) -> tuple[Texts, Texts]:
    """References and captions of made-up words."""
    made = (" ".join(words) + " ." for words in sentences(images * (REFERENCES + 1)))
    texts = {str(i): list(itertools.islice(made, REFERENCES + 1)) for i in range(images)}
    references = {i: each[:-1] for i, each in texts.items()}
    return references, {i: each[-1:] for i, each in texts.items()}


def read_texts(file: Path) -> tuple[Texts, Texts]:
    """References and captions of a file."""
    data = json.loads(file.read_text("utf-8"))
    return data["gts"], data["res"]


def in_java(texts: Texts) -> Texts:
    """Tokenize as pycocoevalcap does, with a Java process."""
    rows = {i: [{"caption": text} for text in each] for i, each in texts.items()}
    tokenized: Texts = PTBTokenizer().tokenize(rows)
    return tokenized


def in_python(texts: Texts) -> Texts:
    """Tokenize with the project's own tokenizer."""
    return {i: [" ".join(tokenize(text)) for text in each] for i, each in texts.items()}


def score_theirs(words: Callable[[Texts], Texts], references: Texts, captions: Texts) -> None:
    """Tokenize and score with pycocoevalcap, without its output."""
    with contextlib.redirect_stdout(io.StringIO()):
        gts, res = words(references), words(captions)
        for scorer in (Bleu(4), Rouge(), Cider()):
            scorer.compute_score(gts, res)


class NewReferences:
    """Ours on references that were never scored before, so that nothing is cached."""

    def __init__(self, references: Texts, captions: Mapping[str, str]) -> None:
        self._references = references
        self._captions = captions
        self._calls = 0

    def __call__(self) -> None:
        """Score against the same references with a new word added to each."""
        self._calls += 1
        changed = {
            i: [f"{text} word{self._calls}" for text in each]
            for i, each in self._references.items()
        }
        score_captions(self._captions, changed, METRICS)


def works_of(references: Texts, captions: Texts) -> dict[str, Work]:
    """The works to time: pycocoevalcap's scoring and ours."""
    single = {i: texts[0] for i, texts in captions.items()}
    units = {"captions": len(single)}
    calls: dict[str, Callable[[], object]] = {
        SCORERS: partial(score_theirs, in_python, references, captions),
        FIRST: NewReferences(references, single),
        AGAIN: partial(score_captions, single, references, METRICS),
        BLEU: partial(score_captions, single, references, ["BLEU"]),
    }
    if find_java():
        calls = {WHOLE: partial(score_theirs, in_java, references, captions), **calls}
    return {name: Work(call, units) for name, call in calls.items()}


def figures_of(timings: Mapping[str, Timing]) -> list[Figure]:
    """Ours over theirs, with new references and with cached ones."""
    theirs = WHOLE if WHOLE in timings else SCORERS
    return [
        ratio(f"scores, {name} over {theirs}", timings[name], timings[theirs], "captions")
        for name in (FIRST, AGAIN)
    ]


def main() -> None:
    """Measure, print and write ``scores.json``."""
    options = parser(__doc__)
    options.add_argument("--captions", type=Path, help="a file of references and captions")
    chosen = options.parse_args()
    prepare(chosen)
    made = partial(made_texts, 20 if chosen.quick else 1000)
    references, captions = read_texts(chosen.captions) if chosen.captions else made()
    timings = time_in_turns(works_of(references, captions), turns=chosen.turns)
    facts = {
        "captions": len(captions),
        "references": sum(map(len, references.values())),
        "metrics": METRICS,
    }
    report = Report("scores", timings, figures_of(timings), facts)
    report.show()
    report.save(chosen.output)


if __name__ == "__main__":
    main()
