"""Runs put together: a folder that is a run itself, and what keeps runs apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Smoke

from showtell.caption import load_run, member_folders
from showtell.comparison.trainings import read_training
from showtell.config import build, compose, saved_config
from showtell.decoding.ensemble import Ensemble
from showtell.ensembles import gather
from showtell.errors import UserError
from showtell.evaluation import evaluate
from showtell.report.run_page import write_report
from showtell.runs import CONFIG, RECORD, VOCABULARY

pytestmark = pytest.mark.usefixtures("without_java")


@pytest.fixture
def ensemble(smoke: Smoke, attentive: Path, tmp_path: Path) -> Path:
    """Of a decoder of pooled features and one of the grid."""
    return gather([smoke.folder, attentive], tmp_path / "ensemble", search=None)


def changed(run: Path, folder: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A copy of a run of which one file tells something else."""
    shutil.copytree(run, folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def test_its_folder_captions_with_all_members_wherever_it_lies(
    smoke: Smoke, attentive: Path, ensemble: Path, tmp_path: Path
) -> None:
    run = load_run(ensemble.rename(tmp_path / "elsewhere"))
    members = [load_run(smoke.folder), load_run(attentive)]
    assert run.feature_kind == "grid"
    assert run.search == members[0].search
    together = Ensemble([member.decoder for member in members])
    features = torch.rand(3, 4, 1280)
    assert run.decode(features) == members[0].search(together, features)


def test_it_is_scored_reported_and_compared_like_a_run(smoke: Smoke, ensemble: Path) -> None:
    config = saved_config(ensemble / CONFIG, [], [])
    found = evaluate(ensemble, "val", config, build("data", config["data"]))
    assert json.loads((ensemble / "scores-val.json").read_text())["images"] == len(found.captions)
    assert "Ensemble on scenes" in write_report(ensemble).read_text()
    training = read_training(ensemble, "val")
    assert len(training.statistics.image_ids) == 4
    assert training.settings != read_training(smoke.folder, "val").settings


def test_one_run_alone_is_the_same_run_with_other_views(attentive: Path, tmp_path: Path) -> None:
    views = "original+zoomed"
    folder = gather([attentive], tmp_path / "looking", search=None, views=views)
    assert load_run(folder).views == ("original", "zoomed")
    assert saved_config(folder / CONFIG, [], [])["views"] == views
    with pytest.raises(UserError, match="--views: views=zoomed: begin with original"):
        gather([attentive], tmp_path / "wrong", search=None, views="zoomed")
    assert not (tmp_path / "wrong").exists()


def test_an_ensemble_in_an_ensemble_counts_with_each_of_its_members(
    smoke: Smoke, ensemble: Path, tmp_path: Path
) -> None:
    larger = gather([ensemble, smoke.folder], tmp_path / "larger", search=None)
    assert len(member_folders(larger)) == 3
    assert len(load_run(larger).decoder.members) == 3
    assert len(json.loads((larger / RECORD).read_text())["members"]) == 3


def test_one_member_is_its_run_with_another_search(smoke: Smoke, tmp_path: Path) -> None:
    search = compose(["decoding=beam5"])["decoding"]
    folder = gather([smoke.folder], tmp_path / "alone", search=search)
    run, member = load_run(folder), load_run(smoke.folder)
    assert run.search.beam_size == 5
    assert run.record["seed"] == member.record["seed"]
    features = torch.rand(2, 1280)
    assert run.decode(features) == run.search(member.decoder, features)
    config = saved_config(folder / CONFIG, [], [])
    assert config["decoding"] == search
    assert config["model"] == member.record["model"]


def test_runs_of_other_words_or_another_encoder_are_refused(smoke: Smoke, tmp_path: Path) -> None:
    def rename_word(vocabulary: Any) -> None:
        vocabulary["words"][0] = "aardvark"

    def change_weights(record: Any) -> None:
        record["encoder"]["identity"]["weights"] = "0" * 64

    words = changed(smoke.folder, tmp_path / "words", VOCABULARY, rename_word)
    encoder = changed(smoke.folder, tmp_path / "encoder", RECORD, change_weights)
    output = tmp_path / "output"
    with pytest.raises(UserError, match="have different words"):
        gather([smoke.folder, words], output, search=None)
    with pytest.raises(UserError, match="features of different encoders"):
        gather([smoke.folder, encoder], output, search=None)
    assert not output.exists()


def test_what_is_there_is_not_overwritten(smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists; name another --output"):
        gather([smoke.folder], tmp_path, search=None)


@pytest.mark.parametrize("members", [[], "one", None, ["a", "b", "c"]])
def test_a_damaged_ensemble_is_named(ensemble: Path, tmp_path: Path, members: Any) -> None:
    def rename(record: Any) -> None:
        record["members"] = members

    damaged = changed(ensemble, tmp_path / "damaged", RECORD, rename)
    with pytest.raises(UserError, match=r"names no members|members/3 is not a run folder"):
        load_run(damaged)


def test_a_member_of_other_words_than_its_ensemble_is_refused(ensemble: Path) -> None:
    file = ensemble / VOCABULARY
    content = json.loads(file.read_text())
    content["words"][0] = "aardvark"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not that of the members beside it"):
        load_run(ensemble)
