from __future__ import annotations

import sys
from pathlib import Path

import pytest

from showtell.metrics import score_captions, spice
from showtell.metrics.spice import SpiceError

# Stands in for Java and SPICE: the score of a caption is its length in tenths, last image first.
PROGRAM = """\
import json, sys
rows = json.load(open(sys.argv[sys.argv.index("-jar") + 2], encoding="utf-8"))
scores = [{"image_id": r["image_id"], "scores": {"All": {"f": len(r["test"]) / 10}}} for r in rows]
json.dump(scores[::-1], open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose Python is run where Java would be."""
    path, java = tmp_path / "program.py", tmp_path / "java"
    path.write_text(PROGRAM, encoding="utf-8")
    java.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{path}" "$@"\n', encoding="utf-8")
    java.chmod(0o755)
    monkeypatch.setattr(spice, "find_java", lambda: java)
    monkeypatch.setattr(spice, "_LIBRARY", tmp_path)
    for name in spice._MODELS:
        (tmp_path / name).touch()
    return path


@pytest.mark.usefixtures("program")
def test_scores_reach_their_images() -> None:
    captions = {str(number): "a" * (number + 1) for number in range(12)}
    scores = score_captions(captions, {i: ["b"] for i in captions}, ["SPICE"])
    each = [scores.per_image[str(number)]["SPICE"] for number in range(12)]
    assert each == pytest.approx([(number + 1) / 10 for number in range(12)])
    assert scores.scores["SPICE"] == pytest.approx(0.65)


def test_a_program_without_end_is_stopped(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.write_text("import time; time.sleep(600)", encoding="utf-8")
    monkeypatch.setattr(spice, "_SECONDS_PER_SENTENCE", 0.0)
    with pytest.raises(SpiceError, match="did not end within 0 s and was stopped"):
        spice.spice(["a"], [["b"]], limit_seconds=0.2)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("import sys; sys.exit('no memory')", "Java said: no memory"),
        ("import sys; sys.exit(1)", "Java said: nothing"),
        ("", "FileNotFoundError"),
        (PROGRAM.replace('"f"', '"g"'), "KeyError"),
        (PROGRAM.replace("scores[::-1]", "scores[1:]"), "KeyError"),
    ],
)
def test_a_program_that_fails_is_told(program: Path, behaviour: str, words: str) -> None:
    program.write_text(behaviour, encoding="utf-8")
    scores = score_captions({"1": "a"}, {"1": ["b"]}, ["ROUGE-L", "SPICE"])
    assert words in scores.skipped["SPICE"] and "Java 8" in scores.skipped["SPICE"]
    assert "ROUGE-L" in scores.scores


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("missing", range(2))
def test_without_its_models_the_download_is_named(tmp_path: Path, missing: int) -> None:
    assert spice.spice_obstacle() is None
    (tmp_path / spice._MODELS[missing]).unlink()
    remedy = spice.spice_obstacle() or ""
    assert "get_stanford_models" in remedy and "\n" not in remedy
