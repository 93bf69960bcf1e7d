"""Released models: found by name, small, harmless, and good for a sentence on a bare machine."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from showtell import load_run, runs
from showtell.config import compose
from showtell.errors import UserError

LARGEST_MB = 25
HARMLESS = {".json", ".safetensors", ".yaml", ".csv", ".md"}
# Two folders deep from the root, and no part of an address or of a relative path.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/-])/[\w.-]+/[\w.-]+")
# The card rounds; METEOR needs Java, which the other scores do not.
SHOWN = ("BLEU-1", "BLEU-4", "METEOR", "CIDEr")
models = pytest.mark.parametrize("name", runs.released_models())


def test_a_name_is_a_released_model_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    (tmp_path / "released/known").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert runs.locate("known") == tmp_path / "released/known"
    assert runs.locate("outputs/known") == Path("outputs/known")
    Path("known").mkdir()  # a data set, say
    assert runs.locate("known") == tmp_path / "released/known"
    Path("known/run.json").write_text("{}")
    assert runs.locate("known") == Path("known")


@pytest.mark.parametrize("name", ["..", ".", "../released", "/", ""])
def test_a_name_leads_nowhere_else(name: str) -> None:
    assert runs.locate(name) == Path(name)


def test_the_error_names_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path)
    (tmp_path / "known").mkdir()
    (tmp_path / "known/run.json").write_text("{}")
    with pytest.raises(UserError, match="or known, which comes with showtell"):
        runs.read_record(Path("unknown"))


def test_there_is_a_model() -> None:
    assert "flickr8k" in runs.released_models()


@models
def test_it_is_small_and_holds_nothing_that_runs(name: str) -> None:
    files = [file for file in (runs.RELEASED / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LARGEST_MB * 1e6
    assert {file.suffix for file in files} <= HARMLESS


@models
def test_it_names_no_folder_of_the_machine_that_trained_it(name: str) -> None:
    for file in ("run.json", "config.yaml", "README.md"):
        text = (runs.RELEASED / name / file).read_text()
        assert not ABSOLUTE_PATH.search(text), file


@pytest.mark.parametrize(
    ("text", "is_absolute"),
    [
        ("root: /a/b", True),
        ('"/a/b/c"', True),
        ("root: outputs/data/flickr8k", False),
        ("https://example.org/a/b", False),
    ],
)
def test_an_absolute_path_is_told_from_others(text: str, is_absolute: bool) -> None:
    assert bool(ABSOLUTE_PATH.search(text)) == is_absolute


@models
def test_its_card_tells_the_scores_beside_it(name: str) -> None:
    scores = json.loads((runs.RELEASED / name / "scores-val.json").read_text())
    card = (runs.RELEASED / name / "README.md").read_text()
    for metric in SHOWN:
        assert f"| {metric} | {100 * scores[metric]:.1f} |" in card
    captions = json.loads((runs.RELEASED / name / "captions-val.json").read_text())
    assert len(captions) == scores["images"]


@models
def test_the_commands_of_its_card_compose(name: str) -> None:
    card = (runs.RELEASED / name / "README.md").read_text()
    commands = [line for line in card.splitlines() if line.startswith("python train.py ")]
    assert commands
    for command in commands:
        compose(shlex.split(command)[2:])


@models
def test_it_says_something_of_a_picture(name: str, tmp_path: Path) -> None:
    Image.radial_gradient("L").save(tmp_path / "picture.png")
    (caption,) = load_run(name).caption([tmp_path / "picture.png"])
    assert len(caption.split()) >= 3
