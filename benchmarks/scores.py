"""Time scoring beside pycocoevalcap's own path: python benchmarks/scores.py CAPTIONS.json

The file holds ``{"gts": {id: [references]}, "res": {id: [caption]}}``. METEOR is left out; its
process takes the same time in both. pycocoevalcap's tokenizer needs Java and is skipped without.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from showtell.metrics import score_captions
from showtell.metrics.java import find_java
from showtell.text.tokenizer import tokenize

Words = dict[str, list[str]]


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - start


def in_java(texts: Words) -> Words:
    """Tokenize as pycocoevalcap does, with a Java process."""
    rows = {i: [{"caption": text} for text in each] for i, each in texts.items()}
    tokenized: Words = PTBTokenizer().tokenize(rows)
    return tokenized


def in_python(texts: Words) -> Words:
    """Tokenize with the project's own tokenizer."""
    return {i: [" ".join(tokenize(text)) for text in each] for i, each in texts.items()}


def main() -> None:
    """Print one line per path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=Path)
    data = json.loads(parser.parse_args().captions.read_text("utf-8"))
    references, captions = data["gts"], {i: texts[0] for i, texts in data["res"].items()}
    metrics = ["BLEU", "ROUGE-L", "CIDEr"]

    def ours() -> None:
        score_captions(captions, references, metrics)

    def theirs(words: Callable[[Words], Words]) -> None:
        gts, res = words(references), words(data["res"])
        for scorer in (Bleu(4), Rouge(), Cider()):
            scorer.compute_score(gts, res)

    print(f"{len(captions)} images, {sum(map(len, references.values()))} references, {metrics}")
    if find_java():
        print(f"pycocoevalcap, Java tokens       {seconds(lambda: theirs(in_java)):6.2f} s")
    print(f"pycocoevalcap, Python tokens     {seconds(lambda: theirs(in_python)):6.2f} s")
    print(f"score_captions, new references   {seconds(ours):6.2f} s")
    print(f"score_captions, the same again   {seconds(ours):6.2f} s")
    for each in (["BLEU"], ["BLEU", "CIDEr"]):
        again = seconds(partial(score_captions, captions, references, each))
        print(f"score_captions, {','.join(each):<17}{again:6.2f} s")


if __name__ == "__main__":
    main()
