"""What a whole training of a sweep leaves in its W&B file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import Smoke
from wandb_reading import Recorded, wandb_file

from showtell.caption import load_run
from showtell.config import build
from showtell.experiment import train


@pytest.fixture(scope="module")
def tracked(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs in a sweep's folder, tracked offline."""
    folder = tmp_path_factory.mktemp("a-sweep") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("showtell.metrics.meteor.find_java", lambda: None)
        patch.delenv("WANDB_MODE", raising=False)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        config = smoke.config("tracking=offline", f"output.folder={folder}")
        return train(config, build("data", config["data"]))


@pytest.fixture(scope="module")
def recorded(tracked: Path) -> Recorded:
    return Recorded(tracked)


def test_curves_are_those_of_the_csv(recorded: Recorded, tracked: Path) -> None:
    header, *rows = (tracked / "metrics.csv").read_text().splitlines()
    for column, name in enumerate(header.split(",")):
        if "/" in name:
            cells = [(int(r.split(",")[1]), r.split(",")[column]) for r in rows]
            assert recorded.curve(name) == [(step, float(cell)) for step, cell in cells if cell]
    # Either axis can be chosen for any curve.
    assert all({"step", "epoch"} <= point.keys() for point in recorded.points)


def test_each_epoch_has_a_table_of_the_same_pictures(recorded: Recorded, tracked: Path) -> None:
    tables = recorded.curve("val/captions/path")
    assert len(tables) == 2
    assert [step for step, _ in tables] == [step for step, _ in recorded.curve("val/CIDEr")]
    contents = [
        json.loads((wandb_file(tracked).parent / "files" / p).read_text()) for _, p in tables
    ]
    references = [[row[2] for row in table["data"]] for table in contents]
    assert references[0] == references[1]
    assert len(references[0]) == 4
    assert contents[0]["columns"] == ["image", "caption", "references"]
    assert all(row[0] == "Image" for table in contents for row in table["data"])


def test_the_end_has_scored_captions_and_scores(recorded: Recorded, tracked: Path) -> None:
    ((_, path),) = recorded.curve("best/captions/path")
    table = json.loads((wandb_file(tracked).parent / "files" / path).read_text())
    written = {row["caption"] for row in json.loads((tracked / "captions-val.json").read_text())}
    assert {row[1] for row in table["data"]} == written
    scores = json.loads((tracked / "scores-val.json").read_text())
    for name in ("BLEU-1", "BLEU-4", "CIDEr", "ROUGE-L"):
        assert recorded.summary[f"best/{name}"] == pytest.approx(scores[name])
    assert recorded.exit_codes == {0}


def test_the_artifact_is_a_run_that_captions(
    recorded: Recorded, tracked: Path, tmp_path: Path
) -> None:
    (name,) = [name for name in recorded.artifacts if name.startswith("captioner-")]
    _rebuild(recorded.artifacts[name], tmp_path)
    before, after = load_run(tracked), load_run(tmp_path)
    assert after.vocabulary.tokens == before.vocabulary.tokens
    weights = before.decoder.state_dict()
    assert all(weights[key].equal(value) for key, value in after.decoder.state_dict().items())


def test_nothing_is_staged_outside_the_run(recorded: Recorded, tracked: Path) -> None:
    files = [file for listed in recorded.artifacts.values() for file in listed.values()]
    assert len(files) > 8
    assert all(file.is_relative_to(tracked) for file in files)


def _rebuild(files: Mapping[str, Path], folder: Path) -> None:
    """What downloading an artifact does."""
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
