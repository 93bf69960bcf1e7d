"""Released models: found by name, small, harmless, and good for a sentence on a bare machine."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Smoke
from PIL import Image

from showtell import load_run, runs
from showtell.config import build, compose
from showtell.ensembles import gather
from showtell.errors import UserError
from showtell.experiment import train
from showtell.training.tuning import TUNED_BY
from showtell.vision.weights import half_file, load_state

SCRIPT = Path(__file__).parents[1] / "scripts" / "release.py"
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
def test_its_card_is_what_is_written_of_it_now(name: str, tmp_path: Path) -> None:
    copy = shutil.copytree(runs.RELEASED / name, tmp_path / name)
    runpy.run_path(str(SCRIPT))["write_card"](copy)
    assert (copy / "README.md").read_text() == (runs.RELEASED / name / "README.md").read_text()


def test_a_card_tells_how_captions_are_found() -> None:
    told = runpy.run_path(str(SCRIPT))["_told_search"]
    before = {"beam_size": 5, "candidates": 10}
    assert told({"beam_size": 3}) == "beam 3"
    assert told(before) == "beam 5, the best of 10 by expected n-grams"
    assert told({**before, "guidance": 0.0}) == told(before)
    assert told({**before, "guidance": 3}) == f"{told(before)}, which guide the beam"


@models
def test_it_says_something_of_a_picture(name: str, tmp_path: Path) -> None:
    Image.radial_gradient("L").save(tmp_path / "picture.png")
    (caption,) = load_run(name).caption([tmp_path / "picture.png"])
    assert len(caption.split()) >= 3


@pytest.mark.usefixtures("without_java")
def test_the_mean_of_two_runs_is_released(
    smoke: Smoke, further: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes it writes what it wrote before, and its card tells how to make it again."""
    search = {**compose(["decoding=reranked"])["decoding"], "least_images": 1, "rank": 8}
    ends, views = [further, smoke.folder], "original+mirrored"
    mean = gather(ends, tmp_path / "mean", search=search, views=views, mean_weights=True)
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    script = runpy.run_path(str(SCRIPT))
    turned = gather(ends[::-1], tmp_path / "turned", search=None, mean_weights=True)
    with pytest.raises(UserError, match="is no mean of a run and the one it began with"):
        script["release"](turned, "model")
    runs.update_record(mean / runs.MEMBERS / "1", commit="a" * 40, test_looks=["2026-01-01"])
    runs.update_record(mean, commit="b" * 40 + "+changes", test_looks=["2026-01-02"])
    folder = script["release"](mean, "model")
    assert folder == tmp_path / "released/model"
    assert not (folder / runs.MEMBERS).exists()
    assert (folder / runs.BEST_WEIGHTS).stat().st_mode & 0o044  # others may read it
    before, after = load_run(mean), load_run("model")
    (member,) = before.decoder.members
    for name, tensor in after.decoder.state_dict().items():
        apart = (tensor - member.state_dict()[name]).abs().max()
        assert apart <= member.state_dict()[name].abs().max() / 100
    pictures = [image.path for image in build("data", smoke.config()["data"]).split("val")]
    assert after.caption(pictures) == before.caption(pictures)
    assert torch.equal(after.search.expected.weights, before.search.expected.weights)

    assert runs.read_record(folder)[runs.MEAN_OF] == ["model", "taught"]
    commands = list(script["_commands"](folder, json.loads((folder / runs.RECORD).read_text())))
    taught, critical, both = (shlex.split(command) for command in commands)
    assert compose(taught[2:])["objective"]["_target_"].endswith("CrossEntropy")
    config: dict[str, Any] = compose(critical[2:])
    assert config["objective"]["_target_"].endswith("SelfCritical")
    assert config["start_from"] == "outputs/runs/taught"
    assert taught[-1] == "output.folder=outputs/runs/taught"
    assert both[:4] == ["showtell", "ensemble", "outputs/runs/model", "outputs/runs/taught"]
    assert both[4:6] == ["--mean-weights", "--search"]
    assert compose(both[6:-4])["decoding"] == search
    assert both[-4:] == ["--views", views, "--output", "outputs/runs/model_released"]
    assert "views" not in " ".join(critical)
    # A release can be released, and loses nothing by it.
    again = script["release"](folder, "again")
    states = [load_run(each).decoder.state_dict() for each in (folder, again)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=0)
    record = json.loads((again / runs.RECORD).read_text())
    assert script["_told_commits"](record) == (
        f"trained at commit `{'a' * 12}`, put together at `{'b' * 12}+changes`"
    )
    assert record["test_looks"] == ["2026-01-01", "2026-01-02"]
    renamed = [command.replace("runs/model", "runs/again") for command in commands]
    assert list(script["_commands"](again, record)) == renamed
    with pytest.raises(UserError, match=r"failures\.md is missing"):
        script["write_card"](folder)
    (folder / "failures.md").write_text("Wrong about dogs.")
    with pytest.raises(UserError, match=r"scores-val\.json is missing"):
        script["write_card"](folder)


@pytest.mark.usefixtures("without_java")
def test_an_encoder_of_its_own_is_released_in_bytes(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    data, own = (build(group, smoke.config()[group]) for group in ("data", "encoder"))
    file = tmp_path / "tuned.safetensors"
    facts = {TUNED_BY: json.dumps({"epochs": 3, "lr": 0.1, "seed": 5})}
    file.write_bytes(half_file(own.body, facts))
    changes = (f"encoder.weights={file}", "trainer.max_epochs=1")
    run = train(smoke.config(*changes, f"output.folder={tmp_path / 'run'}"), data)
    script = runpy.run_path(str(SCRIPT))
    folder = script["release"](run, "model")
    kept = folder / runs.LEARNED_ENCODER
    assert kept.stat().st_size < 0.6 * file.stat().st_size
    assert kept.stat().st_mode & 0o044
    before, after = load_run(run).encoder, load_run(folder).encoder
    assert after.identity != before.identity  # rounded it is another one
    assert json.loads((folder / runs.RECORD).read_text())["encoder"]["weights"] == (
        "outputs/tuned.safetensors"
    )
    pictures = torch.rand(2, 3, *[before.preprocessing.size] * 2) * 2 - 1
    with torch.inference_mode():
        wanted, found = before(pictures).pooled, after(pictures).pooled
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99
    tuning, training = script["_commands"](folder, json.loads((folder / runs.RECORD).read_text()))
    network = before.identity.network
    assert tuning == (
        f"showtell tune encoder={network} encoder.preprocessing.size=64 seed=5 --epochs 3 --lr 0.1 "
        "--phrases 1 --output outputs/tuned.safetensors"
    )
    assert "encoder.weights=outputs/tuned.safetensors" in shlex.split(training)
    # Rounded once more it is the same.
    again = script["release"](folder, "again")
    for name, tensor in load_state(kept).items():
        torch.testing.assert_close(load_state(again / runs.LEARNED_ENCODER)[name], tensor)
    # The card says which pictures were learned from, so the weights have to.
    (run / runs.LEARNED_ENCODER).write_bytes(half_file(own.body, {}))
    with pytest.raises(UserError, match=r"encoder\.safetensors does not say which pictures"):
        script["release"](run, "untold")
    twice = {TUNED_BY: json.dumps({"epochs": 3, "lr": 0.1, "seed": 5, "weights": "own.pth"})}
    (run / runs.LEARNED_ENCODER).write_bytes(half_file(own.body, twice))
    with pytest.raises(
        UserError, match=r"encoder\.safetensors was tuned from own\.pth, and a card"
    ):
        script["release"](run, "untold")


def test_the_card_says_how_each_network_was_tuned() -> None:
    facts = {"epochs": 4, "lr": 0.0003, "seed": 1, "phrases": 1}
    seen = {"size": 260, "resize": "whole", "mean": [0.5, 0.5, 0.5]}
    identity = {"network": "efficientnet_lite1+efficientnet_lite1", "preprocessing": seen}
    record = {"encoder": {"weights": "outputs/both.safetensors", "identity": identity}}
    commands = runpy.run_path(str(SCRIPT))["_tuning_commands"]
    assert list(commands(record, [facts, {**facts, "seed": 2, "phrases": 3}])) == [
        "showtell tune encoder=efficientnet_lite1 encoder.preprocessing.size=260 seed=1 "
        "--epochs 4 --lr 0.0003 --phrases 1 --output outputs/both_1.safetensors",
        "showtell tune encoder=efficientnet_lite1 encoder.preprocessing.size=260 seed=2 "
        "--epochs 4 --lr 0.0003 --phrases 3 --output outputs/both_2.safetensors",
        "python scripts/join_encoders.py outputs/both_1.safetensors outputs/both_2.safetensors "
        "--output outputs/both.safetensors",
    ]
    networks = "'encoder.networks=[efficientnet_lite1,efficientnet_lite1]'"
    assert list(commands(record, [facts])) == [
        f"showtell tune encoder=joined {networks} seed=1 --epochs 4 --lr 0.0003 --phrases 1 "
        "--output outputs/both.safetensors"
    ]
    identity["preprocessing"] = {**seen, "resize": "crop", "mean": [0.1, 0.2, 0.3]}
    (tuning,) = commands(record, [{**facts, "size": 240}])
    options = shlex.split(tuning)[2:-8]
    assert compose(options)["encoder"] == {
        **compose(options[:2])["encoder"],
        "preprocessing": {
            **compose(["encoder=joined"])["encoder"]["preprocessing"],
            **{"size": 240, "resize": "crop", "mean": [0.1, 0.2, 0.3]},
        },
    }


def altered(smoke: Smoke, folder: Path, **changes: Any) -> Path:
    """A copy of the smoke run whose record and configuration say something else."""
    run = shutil.copytree(smoke.folder, folder)
    for write, said in ((runs.RECORD, runs.read_record(run)), (runs.CONFIG, runs.read_config(run))):
        known = {k: {**said[k], **v} if k == "encoder" else v for k, v in changes.items()}
        runs.write_json(run / write, {**said, **known})  # which is YAML too
    return run


def test_published_weights_are_left_to_be_fetched(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    file = "/somewhere/efficientnet-lite2-0123abcd.pth"
    run = altered(smoke, tmp_path / "run", encoder={"weights": file})
    script = runpy.run_path(str(SCRIPT))
    folder = script["release"](run, "model")
    assert runs.read_record(folder)["encoder"]["weights"] is None
    assert runs.read_config(folder)["encoder"]["weights"] is None
    moved = {**smoke.config(), "encoder": {"weights": "gone/tuned-20261103.safetensors"}}
    carried = tmp_path / "carried.safetensors"
    for facts, told in (
        ({}, "outputs/tuned-20261103.safetensors"),
        ({runs.LEARNED_IN: "{}"}, None),
    ):
        carried.write_bytes(half_file(torch.nn.Linear(1, 1), facts))
        assert script["_shareable"](moved, carried)["encoder"]["weights"] == told
    config = smoke.config("encoder=inception_v3")
    assert script["_shareable"](config, None)["encoder"]["weights"] == "IMAGENET1K_V1"
    record = runs.read_record(folder)
    assert script["_told_encoder"](folder, record).startswith("whose weights are published")
    assert script["_told_pictures"](record) == "ImageNet's"
    assert script["PUT_TOGETHER_AT"] not in record  # by its training
    assert script["_told_commits"]({"commit": "a" * 40}) == f"commit `{'a' * 12}`"


def test_what_a_card_could_not_tell_is_not_released(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    release = runpy.run_path(str(SCRIPT))["release"]
    drawn = compose(["decoding=nucleus"])["decoding"]
    with pytest.raises(UserError, match="captions by Sampling, and a card tells of one beam"):
        release(altered(smoke, tmp_path / "drawn", decoding=drawn), "model")
    start = {"run": "taught", "config": {"start_from": "outputs/runs/earlier"}}
    with pytest.raises(UserError, match="began with taught, which began with yet another run"):
        release(altered(smoke, tmp_path / "third", start=start), "model")
    start = {"run": "taught", "config": {"start_from": None}}
    apart = altered(smoke, tmp_path / "apart", start=start, mean_of=["critical", "another"])
    with pytest.raises(UserError, match="is no mean of a run and the one it began with"):
        release(apart, "model")
    assert not (tmp_path / "released").exists()


def test_an_earlier_model_is_not_lost_where_the_new_one_cannot_take_its_place(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    release, rename = runpy.run_path(str(SCRIPT))["release"], Path.rename
    folder = release(smoke.folder, "model")
    (folder / "failures.md").write_text("Wrong about dogs.")
    assert (release(smoke.folder, "model") / "failures.md").is_file()
    assert [each.name for each in folder.parent.iterdir()] == ["model"]

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".making"):
            raise OSError("full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="full"):
        release(smoke.folder, "model")
    assert (folder / "failures.md").read_text() == "Wrong about dogs."
    assert [each.name for each in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "options", [["run", "--card", "model"], ["--card", "m", "--name", "n"], []]
)
def test_a_card_is_written_without_a_run(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["release.py", *options])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "give RUN and --name, or --card NAME" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", "a/b", "/a", ""])
def test_a_release_has_a_plain_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a plain name"):
        runpy.run_path(str(SCRIPT))["release"](tmp_path, name)


def test_an_ensemble_of_several_is_not_released(
    smoke: Smoke, further: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "released")
    both = gather([smoke.folder, further], tmp_path / "both", search=None)
    with pytest.raises(UserError, match="is an ensemble; a released model is one"):
        runpy.run_path(str(SCRIPT))["release"](both, "model")
    assert not (tmp_path / "released").exists()
