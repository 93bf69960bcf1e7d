"""The Java tokenizer of pycocoevalcap as a reference, and the fixture of its answers.

``python tests/text/java_ptb.py`` asks it again and rewrites ``fixtures/java_ptb.json``.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from showtell.metrics.java import LOCALE_OPTIONS, find_java

FIXTURE = Path(__file__).parent / "fixtures" / "java_ptb.json"
_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_SENTINEL = "zqzsentinel"


def java_tokens(texts: Sequence[str]) -> list[list[str]]:
    """What the COCO evaluation makes of each text (which must not hold a line separator).

    A sentinel line after each text shows that no line was shifted.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "captions.txt")
        lines = "\n".join(f"{_one_line(text)}\n{_SENTINEL}" for text in texts)
        path.write_text(lines, encoding="utf-8", newline="")
        command = [str(find_java()), *LOCALE_OPTIONS, "-cp", str(_JAR)]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, str(path)], capture_output=True, check=True, timeout=120)
    answers = done.stdout.decode("utf-8").removesuffix("\n").split("\n")
    assert answers[1::2] == [_SENTINEL] * len(texts), "a caption was shifted to another line"
    return [_without_punctuation(answer.split(" ")) for answer in answers[::2]]


def _one_line(text: str) -> str:
    return text.replace("\n", " ")  # as pycocoevalcap does


def _without_punctuation(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if token and token not in ptbtokenizer.PUNCTUATIONS]


# Whatever people and programs put into captions, and what the tokenizer has a rule for.
HOSTILE = FIXTURE.with_name("hostile.txt").read_text("utf-8").removesuffix("\n").split("\n")
HOSTILE += ["", " ", "a" * 1000, "dog " * 10_000, "a,b" * 300, "'" * 300, "<a " * 100]


def scrambled(count: int, seed: int) -> list[str]:
    """Random strings out of the pieces of the hostile ones, where rules run into each other."""
    pick = random.Random(seed)
    words = [word for text in HOSTILE if len(text) < 300 for word in text.split()]
    characters = [character for word in words for character in word] + [" "] * 300
    texts = []
    for _ in range(count):
        source = pick.choice((words, characters))
        glue = pick.choice(("", " "))
        texts.append(glue.join(pick.choice(source) for _ in range(pick.randint(1, 6))))
    # Java reads the value of a tag's attribute on into the lines of other captions.
    return [text for text in texts if not ("<" in text and "=" in text)]


def main() -> None:
    """Record Java's answers."""
    texts = [text for text in HOSTILE if len(text) < 5000] + scrambled(1500, seed=0)
    answers = [list(pair) for pair in zip(texts, java_tokens(texts), strict=True)]
    FIXTURE.parent.mkdir(exist_ok=True)
    rows = ",\n".join(json.dumps(pair, ensure_ascii=True) for pair in answers)
    FIXTURE.write_text(f"[\n{rows}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
