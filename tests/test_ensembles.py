"""Runs put together: a folder that is a run itself, and what keeps runs apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Smoke
from torch import Tensor, nn

from showtell.caption import Run, load_run, member_folders
from showtell.comparison.settings import settings_of
from showtell.comparison.trainings import read_training
from showtell.config import build, compose, saved_config
from showtell.decoding.ensemble import Ensemble
from showtell.decoding.guidance import ExpectedCider
from showtell.ensembles import gather
from showtell.errors import UserError
from showtell.evaluation import evaluate
from showtell.experiment import train
from showtell.report.run_page import write_report
from showtell.runs import CONFIG, EXPECTED, RECORD, VOCABULARY
from showtell.text.vocabulary import BEGIN, END
from showtell.vision.extract import encode

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


def smoke_pictures(smoke: Smoke) -> list[Path]:
    return [image.path for image in build("data", smoke.config()["data"]).split("val")]


def features(run: Run, pictures: list[Path]) -> Tensor:
    encoded = encode(
        pictures,
        run.encoder,
        kind=run.feature_kind,
        batch_size=len(pictures),
        device=run.device,
        views=["original"],
    )
    return torch.stack([torch.from_numpy(each).float() for each in encoded])


def test_a_run_stays_on_the_device_that_is_asked_for(
    ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its members too: a GPU that others fill must not be touched."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nn.Module, "to", lambda module, device: pytest.fail(f"moved to {device}"))
    with pytest.raises(pytest.fail.Exception, match="moved to cuda"):
        load_run(ensemble)
    moved: list[torch.device] = []
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moved.append(device) or module)
    assert load_run(ensemble, accelerator="cpu").device.type == "cpu"
    assert set(moved) == {torch.device("cpu")}


def test_its_folder_captions_with_all_members_wherever_it_lies(
    smoke: Smoke, attentive: Path, ensemble: Path, tmp_path: Path
) -> None:
    run = load_run(ensemble.rename(tmp_path / "elsewhere"))
    members = [load_run(smoke.folder), load_run(attentive)]
    assert run.feature_kind == "grid"
    assert run.with_beam(2).encoder is run.with_beam(3).encoder is run.encoder  # built once
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
    assert json.loads((larger / RECORD).read_text())["members"] == ["run", "run", "run"]


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


@pytest.fixture(scope="module")
def other(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that attends to what two networks see, of which the smoke run has one."""
    overrides = (
        "encoder=joined",
        "encoder.networks=[efficientnet_lite1,efficientnet_lite0]",
        "model=attention_glove",
        "model.embedding_width=60",
        "trainer.max_epochs=1",
    )
    config = smoke.config(*overrides, f"output.folder={tmp_path_factory.mktemp('other') / 'run'}")
    return train(config, build("data", config["data"]))


def test_the_mean_of_weights_is_one_model_between_two(
    smoke: Smoke, further: Path, tmp_path: Path
) -> None:
    folder = gather([smoke.folder, further], tmp_path / "mean", search=None, mean_weights=True)
    record = json.loads((folder / RECORD).read_text())
    assert (record["members"], record["mean_of"]) == (["run + run"], ["run", "run"])
    # It stays one, and is told from the run it has its name of.
    again = json.loads((gather([folder], tmp_path / "again", search=None) / RECORD).read_text())
    assert again["mean_of"] == ["run", "run"]
    plain = gather([smoke.folder], tmp_path / "plain", search=None)
    settings = [
        settings_of(saved_config(each / CONFIG, [], []), json.loads((each / RECORD).read_text()))
        for each in (folder, tmp_path / "again", plain)
    ]
    assert settings[0] == settings[1] != settings[2]
    run, ends = load_run(folder), [load_run(each) for each in (smoke.folder, further)]
    (between,) = run.decoder.members
    states = [each.decoder.state_dict() for each in ends]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, tensor in between.state_dict().items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    config = saved_config(folder / CONFIG, [], [])
    assert config["model"] == ends[0].record["model"]
    assert evaluate(folder, "val", config, build("data", config["data"])).captions


def test_the_mean_of_different_models_or_encoders_is_refused(
    smoke: Smoke, attentive: Path, tmp_path: Path
) -> None:
    seen = build("encoder", smoke.config("encoder=efficientnet_lite1")["encoder"])

    def see_with_another(record: Any) -> None:
        record["encoder"]["identity"] = seen.identity.to_json()

    other = changed(attentive, tmp_path / "other", RECORD, see_with_another)
    with pytest.raises(UserError, match="are different models"):
        gather([smoke.folder, attentive], tmp_path / "mean", search=None, mean_weights=True)
    with pytest.raises(UserError, match="taken of runs with one encoder; these have several"):
        gather([attentive, other], tmp_path / "mean", search=None, mean_weights=True)
    assert not (tmp_path / "mean").exists()


def test_runs_whose_encoders_learned_are_searched_anew_and_scored(
    smoke: Smoke, tmp_path: Path
) -> None:
    """A training would refuse the two together; that of an ensemble is past."""
    learned = shutil.copytree(smoke.folder, tmp_path / "learned")
    config = yaml.safe_load((learned / CONFIG).read_text())
    config["optim"]["encoder_lr"] = 1e-4
    (learned / CONFIG).write_text(yaml.safe_dump(config))
    search = compose(["decoding=reranked", "decoding.least_images=2"])["decoding"]
    folder = gather([learned], tmp_path / "reranked", search=search)
    config = saved_config(folder / CONFIG, [], [])
    assert config["optim"]["encoder_lr"] == 1e-4
    assert evaluate(folder, "val", config, build("data", config["data"])).captions


@pytest.mark.parametrize("group", ["data", "encoder"])
def test_a_data_set_or_encoder_of_another_version_is_not_another_one(
    smoke: Smoke, tmp_path: Path, group: str
) -> None:
    older = shutil.copytree(smoke.folder, tmp_path / "older")
    config = yaml.safe_load((older / CONFIG).read_text())
    config[group]["once"] = 1
    (older / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=rf"another version of showtell.* \({group}\.once: there"):
        gather([older], tmp_path / "again", search=None)


def test_a_reranked_search_is_fitted_to_the_training_images(smoke: Smoke, tmp_path: Path) -> None:
    search = compose(["decoding=reranked", "decoding.least_images=2"])["decoding"]
    folder = gather([smoke.folder], tmp_path / "reranked", search=search)
    moved = folder.rename(tmp_path / "moved")
    run, pictures = load_run(moved), smoke_pictures(smoke)
    assert run.search.expected is not None
    grams = run.search.expected.known.ngrams
    assert (run.vocabulary.encode(["a"])[0],) in grams
    member, seen = load_run(smoke.folder), features(run, pictures)
    rules = {"max_length": 20, "repeatable": search["repeatable"]}
    beams = replace(member.search, beam_size=5, **rules).with_vocabulary(run.vocabulary)
    guide = ExpectedCider(run.search.expected, seen, 3)
    several = beams.several(member.decoder, seen, 10, guide)
    ended = [[(*each.token_ids, END) for each in image] for image in several]
    worth = run.search.expected.scores(seen, ended)
    for chosen, image, scores in zip(run.decode(seen), several, worth, strict=True):
        lengths = [len(hypothesis.token_ids) for hypothesis in image]
        rated = [
            h.score + 8 * score + 0.1 * length
            for h, score, length in zip(image, scores, lengths, strict=True)
        ]
        assert chosen.token_ids == image[rated.index(max(rated))].token_ids
        assert chosen.score == pytest.approx(max(rated), abs=1e-4)
    config = saved_config(moved / CONFIG, [], [])
    evaluate(moved, "val", config, build("data", config["data"]))
    signature = json.loads((moved / "scores-val.json").read_text())["signature"]
    assert "candidates:10" in signature
    assert "expected" not in signature
    # As a member it brings what it needs to be loaded, and what searches with it is fitted anew.
    both = gather([moved, smoke.folder], tmp_path / "both", search=None)
    assert load_run(both).search.expected is not None
    # What is known already needs no data set.
    shutil.rmtree(tmp_path / "both")
    with pytest.raises(
        UserError, match=r"--data model\.root=x: give data\.root=PATH or features\.root="
    ):
        gather([moved], tmp_path / "both", search=None, places=["model.root=x"])
    gone = [f"data.root={tmp_path / 'gone'}"]
    again = gather([moved], tmp_path / "both", search=None, places=gone)
    assert (again / EXPECTED).read_bytes() == (moved / EXPECTED).read_bytes()
    assert saved_config(again / CONFIG, [], [])["data"]["root"] == str(tmp_path / "gone")
    with pytest.raises(UserError, match="candidates, least_images and rank are at least 1"):
        gather([smoke.folder], tmp_path / "none", search={**search, "candidates": 0})
    with pytest.raises(UserError, match="candidates, least_images and rank are at least 1"):
        gather([moved], tmp_path / "none", search={**search, "candidates": 0})
    with pytest.raises(UserError, match=r"--data data\.root: give"):
        gather([moved], tmp_path / "none", search=None, places=["data.root"])
    record = json.loads((moved / RECORD).read_text())
    (moved / RECORD).write_text(json.dumps({**record, "views": "mirrored"}))
    with pytest.raises(UserError, match="belongs to another run"):
        load_run(moved)
    (moved / EXPECTED).unlink()
    with pytest.raises(UserError, match=r"expected\.safetensors cannot be read"):
        load_run(moved)


class TestPool:
    """A reranked ensemble compares the candidates of all members, here of different encoders."""

    SEARCH = ("decoding=reranked", "decoding.least_images=2", "decoding.max_length=8")

    @pytest.fixture
    def pooled(self, smoke: Smoke, other: Path, tmp_path: Path) -> Path:
        search = compose(self.SEARCH)["decoding"]
        return gather([smoke.folder, other], tmp_path / "pooled", search=search)

    @pytest.fixture
    def averaged(self, pooled: Path, tmp_path: Path) -> Path:
        search = compose([*self.SEARCH, "decoding.pool=false"])["decoding"]
        return gather([pooled], tmp_path / "averaged", search=search)

    @torch.inference_mode()
    def rated(self, run: Run, own: Tensor, token_ids: tuple[int, ...]) -> float:
        """A member's score of a caption of the image (1, ...), step by step."""
        state, total = run.decoder.start(own), 0.0
        for last, following in pairwise((BEGIN, *token_ids, END)):
            scores, state = run.decoder.step(torch.tensor([last]), state)
            total += float(torch.log_softmax(scores, dim=1)[0, following])
        return total / (len(token_ids) + 1) ** 0.7

    def test_it_takes_the_best_for_all_of_what_any_member_finds(
        self, smoke: Smoke, other: Path, pooled: Path
    ) -> None:
        run, members = load_run(pooled), [load_run(smoke.folder), load_run(other)]
        seen, *own = (features(each, smoke_pictures(smoke)) for each in (run, *members))
        rules = {"max_length": 8, "repeatable": run.search.repeatable}
        beams = replace(members[0].search, beam_size=5, **rules).with_vocabulary(run.vocabulary)
        guide = ExpectedCider(run.search.expected, seen.mean(dim=1), 3)
        lists = [beams.several(m.decoder, x, 10, guide) for m, x in zip(members, own, strict=True)]
        for i, chosen in enumerate(run.decode(seen)):
            totals = {}
            for caption in {each.token_ids for found in lists for each in found[i]}:
                scores = [
                    self.rated(m, x[i : i + 1], caption) for m, x in zip(members, own, strict=True)
                ]
                image = seen[i : i + 1].mean(dim=1)
                ((expected,),) = run.search.expected.scores(image, [[(*caption, END)]])
                totals[caption] = sum(scores) / 2 + 8 * expected + 0.1 * len(caption)
            assert len(totals) > max(len(found[i]) for found in lists)
            assert chosen.score == pytest.approx(max(totals.values()), abs=1e-3)
            assert totals[chosen.token_ids] == pytest.approx(chosen.score, abs=1e-3)

    def test_it_predicts_from_what_the_first_run_sees_and_stores_nothing_new(
        self, smoke: Smoke, other: Path, pooled: Path, tmp_path: Path
    ) -> None:
        run, pictures = load_run(pooled), smoke_pictures(smoke)
        config = saved_config(pooled / CONFIG, [], [])
        assert not (Path(config["features"]["root"]) / run.encoder.identity.key).exists()
        alone = gather([smoke.folder], tmp_path / "alone", search=compose(self.SEARCH)["decoding"])
        again = gather([alone, other], tmp_path / "again", search=None)  # without the data set
        captions = [[(4, 5, END), (5, 4, 6, END)]] * len(pictures)
        expected = [
            each.search.expected.scores(features(each, pictures).flatten(1, -2).mean(1), captions)
            for each in (run, load_run(again))
        ]
        own = load_run(alone)
        assert own.search.expected.scores(features(own, pictures), captions) == [
            pytest.approx(scores, abs=2e-3) for scores in expected[0]
        ]
        assert expected[0] == expected[1]

    def test_led_by_a_run_from_before_it_there_is_a_pool_too(
        self, smoke: Smoke, other: Path, tmp_path: Path
    ) -> None:
        usual = gather([smoke.folder], tmp_path / "usual", search=compose(self.SEARCH)["decoding"])
        older = changed(usual, tmp_path / "older", RECORD, lambda r: r["decoding"].pop("pool"))
        assert load_run(older).search.pool is False
        assert load_run(gather([older, other], tmp_path / "new", search=None)).search.pool is True

    def test_an_ensemble_fitted_again_stores_the_means_of_its_grids(
        self, pooled: Path, tmp_path: Path
    ) -> None:
        search = compose([*self.SEARCH, "decoding.rank=3"])["decoding"]
        again = load_run(gather([pooled], tmp_path / "again", search=search))
        config = saved_config(pooled / CONFIG, [], [])
        folder = Path(config["features"]["root"]) / again.encoder.identity.key
        assert again.feature_kind == "grid"
        assert [each.name for each in folder.iterdir() if each.is_dir()] == ["pooled"]
        assert again.search.expected.weights.shape[1] == 3
        shutil.rmtree(folder)  # other tests have none

    def test_a_member_that_attends_may_be_the_first(
        self, smoke: Smoke, other: Path, tmp_path: Path
    ) -> None:
        search = compose(self.SEARCH)["decoding"]
        run = load_run(gather([other, smoke.folder], tmp_path / "turned", search=search))
        own = load_run(gather([other], tmp_path / "alone", search=search))
        pictures, captions = smoke_pictures(smoke), [[(4, 5, END)]] * 4
        seen = [features(each, pictures).mean(dim=1) for each in (run, own)]
        of_both, of_own = (
            each.search.expected.scores(pooled, captions)
            for each, pooled in zip((run, own), seen, strict=True)
        )
        assert of_both == [pytest.approx(scores, abs=2e-3) for scores in of_own]
        assert all(hypothesis.token_ids for hypothesis in run.decode(features(run, pictures)))

    def test_it_captions_and_is_scored_like_a_run(self, smoke: Smoke, pooled: Path) -> None:
        pictures = smoke_pictures(smoke)
        assert len(load_run(pooled).caption(pictures)) == len(pictures)
        config = saved_config(pooled / CONFIG, [], [])
        assert config["decoding"]["pool"] is True
        assert evaluate(pooled, "val", config, build("data", config["data"])).captions
        signature = json.loads((pooled / "scores-val.json").read_text())["signature"]
        assert "candidates:10" in signature
        assert "pool:yes" in signature

    def test_without_it_or_before_it_there_is_one_search_with_the_mean(
        self, smoke: Smoke, averaged: Path, tmp_path: Path
    ) -> None:
        older = shutil.copytree(averaged, tmp_path / "older")
        record = json.loads((older / RECORD).read_text())
        assert record["decoding"].pop("pool") is False
        (older / RECORD).write_text(json.dumps(record))
        config = yaml.safe_load((older / CONFIG).read_text())
        del config["decoding"]["pool"]
        (older / CONFIG).write_text(yaml.safe_dump(config))
        found = []
        for folder in (averaged, older):
            config = saved_config(folder / CONFIG, [], [])
            evaluate(folder, "val", config, build("data", config["data"]))
            signature = json.loads((folder / "scores-val.json").read_text())["signature"]
            assert "pool:no" in signature
            run, training = load_run(folder), read_training(folder, "val")
            seen = features(run, smoke_pictures(smoke))
            search = replace(run.search, weight=0.0, word_reward=0.0, guidance=0.0)
            beams = replace(load_run(smoke.folder).search, beam_size=5, max_length=8)
            beams = replace(beams, repeatable=search.repeatable).with_vocabulary(run.vocabulary)
            best = [each[0] for each in beams.several(run.decoder, seen, 10)]
            assert search(run.decoder, seen) == best
            found.append((run.decode(seen), training.settings))
        assert found[0] == found[1]

    def test_one_run_alone_has_nothing_to_pool(self, smoke: Smoke, tmp_path: Path) -> None:
        search = compose(self.SEARCH)["decoding"]
        usual = gather([smoke.folder], tmp_path / "usual", search=search)
        apart = gather([usual], tmp_path / "apart", search={**search, "pool": False})
        runs, signatures = [load_run(usual), load_run(apart)], []
        seen = features(runs[0], smoke_pictures(smoke))
        assert runs[0].decode(seen) == runs[1].decode(seen)
        for folder in (usual, apart):
            config = saved_config(folder / CONFIG, [], [])
            evaluate(folder, "val", config, build("data", config["data"]))
            signatures.append(json.loads((folder / "scores-val.json").read_text())["signature"])
        assert signatures[0] == signatures[1]
        assert "pool" not in signatures[0]
        assert read_training(usual, "val").settings == read_training(apart, "val").settings


def test_runs_of_other_words_or_lost_encoders_are_refused(smoke: Smoke, tmp_path: Path) -> None:
    def rename_word(vocabulary: Any) -> None:
        vocabulary["words"][0] = "aardvark"

    def change_weights(record: Any) -> None:
        record["encoder"]["identity"]["weights"] = "0" * 64

    def change_view(record: Any) -> None:
        record["encoder"]["identity"]["preprocessing"]["interpolation"] = "bilinear"

    words = changed(smoke.folder, tmp_path / "words", VOCABULARY, rename_word)
    encoder = changed(smoke.folder, tmp_path / "encoder", RECORD, change_weights)
    view = changed(smoke.folder, tmp_path / "view", RECORD, change_view)
    output = tmp_path / "output"
    with pytest.raises(UserError, match="have different words"):
        gather([smoke.folder, words], output, search=None)
    with pytest.raises(UserError, match="are not those it was trained with"):
        gather([smoke.folder, encoder], output, search=None)
    with pytest.raises(UserError, match="see pictures differently"):
        gather([smoke.folder, view], output, search=None)
    assert not output.exists()


class TestDifferentEncoders:
    """Each member gets of the common features the columns that its own encoder makes."""

    @pytest.fixture
    def across(self, smoke: Smoke, other: Path, tmp_path: Path) -> Path:
        return gather([smoke.folder, other], tmp_path / "across", search=None)

    def test_members_write_of_what_they_would_see_alone(
        self, smoke: Smoke, other: Path, across: Path
    ) -> None:
        pictures = smoke_pictures(smoke)
        run, members = load_run(across), [load_run(smoke.folder), load_run(other)]
        assert run.encoder.identity.network == "efficientnet_lite0+efficientnet_lite1"
        seen = [features(each, pictures) for each in (run, *members)]
        states = [m.decoder.start(each) for m, each in zip(members, seen[1:], strict=True)]
        first = torch.ones(len(pictures), dtype=torch.long)
        scores, _ = run.decoder.step(first, run.decoder.start(seen[0]))
        alone = [m.decoder.step(first, s)[0] for m, s in zip(members, states, strict=True)]
        torch.testing.assert_close(scores, sum(alone) / 2, rtol=1e-4, atol=1e-4)
        assert len(run.caption(pictures)) == len(pictures)

    def test_a_network_that_two_have_comes_once_and_in_no_matter_which_order(
        self, across: Path, other: Path, smoke: Smoke, tmp_path: Path
    ) -> None:
        again = gather([other, across], tmp_path / "again", search=None)
        record = json.loads((again / RECORD).read_text())
        assert record["encoder"]["identity"]["network"] == "efficientnet_lite1+efficientnet_lite0"
        assert record["columns"] == [[[0, 2560]], [[1280, 2560]], [[0, 2560]]]
        before = json.loads((across / RECORD).read_text())
        assert before["columns"] == [[[0, 1280]], [[1280, 2560], [0, 1280]]]
        assert load_run(again).caption(smoke_pictures(smoke))

    def test_it_is_scored_like_a_run(self, across: Path) -> None:
        config = saved_config(across / CONFIG, [], [])
        assert evaluate(across, "val", config, build("data", config["data"])).captions
        assert config["encoder"]["networks"] == ["efficientnet_lite0", "efficientnet_lite1"]
        assert read_training(across, "val").statistics.image_ids

    @pytest.mark.parametrize(
        "columns", [None, 3, [], [[[0, 1280]]], [[[0, 1280]], [[0, 2561]]], [[[0, 1]], [[0, 2]]]]
    )
    def test_a_record_that_tells_something_else_is_named(
        self, across: Path, tmp_path: Path, columns: Any
    ) -> None:
        def tell(record: Any) -> None:
            record["columns"] = columns

        damaged = changed(across, tmp_path / "damaged", RECORD, tell)
        with pytest.raises(UserError, match="does not say what its members read"):
            load_run(damaged)


def test_what_is_there_is_not_overwritten(smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists; name another --output"):
        gather([smoke.folder], tmp_path, search=None)


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showtell.ensembles.load_run", lambda _: pytest.fail("worked"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/new cannot be written \("):
        gather([smoke.folder], tmp_path / "file" / "new", search=None)


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
