"""From a configuration to a run folder, and on from one: what is written, what is refused."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Smoke

import showtell.metrics.alarms
from showtell import evaluation, experiment
from showtell.caption import load_run
from showtell.config import build, saved_config
from showtell.errors import UserError
from showtell.inputs import features_of
from showtell.runs import BEST_WEIGHTS, LAST_CHECKPOINT
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.left_out import LeftOut
from showtell.training.module import CaptioningModule
from showtell.training.objectives import CrossEntropy
from showtell.types import Split
from showtell.vision.extract import encode
from showtell.vision.features import FeatureStore

pytestmark = pytest.mark.usefixtures("without_java")


def train(config: dict[str, Any]) -> Path:
    return experiment.train(config, build("data", config["data"]))


def resume(folder: Path, config: dict[str, Any]) -> Path:
    return experiment.resume(folder, config, build("data", config["data"]))


def evaluate(folder: Path, split: Split, config: dict[str, Any]) -> None:
    evaluation.evaluate(folder, split, config, build("data", config["data"]))


def record_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def only_run(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


@pytest.fixture
def copied(smoke: Smoke, tmp_path: Path) -> Path:
    return shutil.copytree(smoke.folder, tmp_path / "copied")


def test_a_run_folder_holds_all_that_a_user_relies_on(smoke: Smoke) -> None:
    names = {str(f.relative_to(smoke.folder)) for f in smoke.folder.rglob("*") if f.is_file()}
    assert names == {
        *("config.yaml", "run.json", "vocabulary.json", "metrics.csv"),
        *("captions-val.json", "scores-val.json", "statistics-val.safetensors"),
        *(str(BEST_WEIGHTS), str(LAST_CHECKPOINT)),
    }
    record = record_of(smoke.folder)
    assert (record["status"], record["seed"]) == ("finished", 1)
    assert record["data"]["images"] == {"train": 12, "val": 4, "test": 4}
    written = yaml.safe_load((smoke.folder / "config.yaml").read_text())
    assert written == smoke.config(f"output.folder={smoke.folder}")


def test_captions_and_scores_have_the_promised_form(smoke: Smoke) -> None:
    captions = json.loads((smoke.folder / "captions-val.json").read_text())
    assert [set(row) for row in captions] == [{"image_id", "caption"}] * 4
    assert len({row["image_id"] for row in captions}) == 4
    scores = json.loads((smoke.folder / "scores-val.json").read_text())
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr", "signature"} <= scores.keys()
    assert (scores["images"], scores["references"]) == (4, 20)


def test_the_curves_end_with_both_epochs(smoke: Smoke) -> None:
    with (smoke.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [row["epoch"] for row in rows if row["val/BLEU-4"]]
    assert epochs == ["0", "1"]
    assert all(float(row["train/loss"]) > 0 for row in rows if row["val/BLEU-4"])


def test_a_seed_is_respected_and_zero_is_one(smoke: Smoke, tmp_path: Path) -> None:
    unchanged = (smoke.folder / "metrics.csv").read_bytes()
    again = train(smoke.config(f"output.root={tmp_path}"))
    assert (again / "metrics.csv").read_bytes() == unchanged
    other = train(smoke.config(f"output.root={tmp_path}", "seed=0"))
    assert record_of(other)["seed"] == 0
    assert (other / "metrics.csv").read_bytes() != unchanged


def test_a_taken_folder_is_refused_before_any_work(smoke: Smoke, tmp_path: Path) -> None:
    features = tmp_path / "features"
    with pytest.raises(UserError, match=r"output\.folder=.* exists"):
        train(smoke.config(f"output.folder={smoke.folder}", f"features.root={features}"))
    assert not features.exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.batch_size=0", "trainer: batch_size must be at least 1, not 0"),
        ("trainer.max_epochs=0", "trainer: max_epochs must be at least 1"),
        ("optim.lr=-1", "optim: lr must be at least 0"),
        ("optim.lr=nan", "optim: lr must be at least 0"),
        ("optim.encoder_lr=-1", "optim: encoder_lr must be at least 0, or null"),
        ("decoding.beam_size=0", "decoding: beam_size is at least 1, not 0"),
        ("callbacks.patience=0", "callbacks: patience must be at least 1"),
        ("text.min_count=0", "text: min_count must be at least 1"),
        ("text.min_count=9999", "No word occurs 9999 times"),
        ("text.vectors=none.txt", r"none\.txt cannot be read"),
        ("model.hidden_size=0", "model: "),
        ("model.image_dropout=2", "model: a dropout rate lies in"),
        ("data.val_images=0", "no validation images"),
        ("data.train_images=0", "no training images"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_cannot_work_is_said_before_a_run_begins(
    smoke: Smoke, tmp_path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(smoke.config(f"output.root={tmp_path}", f"data.root={tmp_path}/data", override))
    assert not [f for f in tmp_path.iterdir() if f.name != "data"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: PyTorch finds no GPU"):
        train(smoke.config(f"output.root={tmp_path}", "trainer.accelerator=gpu"))


def test_a_diverging_run_is_marked_failed(smoke: Smoke, tmp_path: Path) -> None:
    wild = ("optim.lr=1e30", "optim.gradient_clip=null")
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+.*train_0"):
        train(smoke.config(f"output.root={tmp_path}", *wild))
    assert record_of(only_run(tmp_path))["status"] == "failed"


def test_freed_memory_is_kept_between_the_making_of_the_objective_and_the_first_step(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`objective=expected` reads all features; what that takes must go back to the system."""
    order: list[str] = []

    def note(name: str, function: Any) -> Any:
        def noted(*args: Any) -> Any:
            order.append(name)
            return function(*args)

        return noted

    step = CaptioningModule.training_step
    monkeypatch.setattr(CrossEntropy, "on", note("objective", CrossEntropy.on))
    monkeypatch.setattr(CaptioningModule, "training_step", note("step", step))
    monkeypatch.setattr(experiment, "keep_freed_memory", lambda: order.append("kept"))
    train(smoke.config(f"output.root={tmp_path}", "trainer.max_epochs=1"))
    assert order[:3] == ["objective", "kept", "step"]
    assert order.count("kept") == 1


@pytest.mark.parametrize("step", [1, 4])  # of three an epoch
def test_an_interrupted_run_says_how_to_go_on_and_then_equals_an_unbroken_one(
    smoke: Smoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    def interrupt(module: CaptioningModule, optimizer: object) -> None:
        if module.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CaptioningModule, "on_before_zero_grad", interrupt)
        with pytest.raises(SystemExit):
            train(smoke.config(f"output.root={tmp_path}"))
    folder = only_run(tmp_path)
    assert record_of(folder)["status"] == "interrupted"
    assert f"python train.py resume={folder}" in capsys.readouterr().err
    resume(folder, smoke.config())
    assert record_of(folder)["status"] == "finished"
    for name in ("metrics.csv", BEST_WEIGHTS, "captions-val.json", "scores-val.json"):
        assert (folder / name).read_bytes() == (smoke.folder / name).read_bytes(), name


def test_a_finished_run_goes_on_only_with_more_to_do(smoke: Smoke, copied: Path) -> None:
    with pytest.raises(UserError, match=r"has finished: raise trainer\.max_epochs"):
        resume(copied, smoke.config())
    resume(copied, smoke.config("trainer.max_epochs=3"))
    assert yaml.safe_load((copied / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    with (copied / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)][-1] == "2"


def test_a_run_that_is_being_trained_is_left_alone_until_its_process_is_gone(
    smoke: Smoke, copied: Path
) -> None:
    checkpoint = copied / LAST_CHECKPOINT
    before = checkpoint.stat().st_mtime_ns
    for_long = smoke.config("trainer.max_epochs=100000")
    trainer = multiprocessing.get_context("fork").Process(target=resume, args=(copied, for_long))
    trainer.start()
    try:
        while checkpoint.stat().st_mtime_ns == before:
            assert trainer.is_alive()
            time.sleep(0.02)
        with pytest.raises(UserError, match=r"is being trained by another process: wait for its"):
            resume(copied, smoke.config("trainer.max_epochs=3"))
    finally:
        trainer.kill()
        trainer.join()
    assert record_of(copied)["status"] == "running"
    begun = AtomicCheckpointIO().load_checkpoint(checkpoint)["epoch"]
    resume(copied, smoke.config(f"trainer.max_epochs={begun + 1}"))
    assert record_of(copied)["status"] == "finished"


def test_what_is_no_run_is_not_made_one(smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        resume(tmp_path / "none", smoke.config())
    assert not (tmp_path / "none").exists()


def test_a_run_without_a_checkpoint_is_not_resumed(smoke: Smoke, copied: Path) -> None:
    (copied / LAST_CHECKPOINT).unlink()
    with pytest.raises(UserError, match=r"last\.ckpt is missing: there is nothing to resume"):
        resume(copied, smoke.config())


def test_a_run_is_not_resumed_with_other_data(smoke: Smoke, copied: Path, tmp_path: Path) -> None:
    more = smoke.config("trainer.max_epochs=3")
    with pytest.raises(UserError, match="cannot go on"):
        resume(copied, {**more, "trainer": {**more["trainer"], "limit_images": 5}})
    with pytest.raises(UserError, match=r"token\.txt is not the file this run was trained with"):
        resume(copied, smoke.config("trainer.max_epochs=3", "data.seed=7"))
    assert record_of(copied)["status"] == "finished"


def test_a_run_is_not_resumed_with_other_pictures(
    smoke: Smoke, copied: Path, tmp_path: Path
) -> None:
    shutil.copytree(smoke.folder.parent / "data", tmp_path / "data")
    first, second = sorted(tmp_path.rglob("train_*.jpg"))[:2]
    first.write_bytes(second.read_bytes())
    moved = smoke.config("trainer.max_epochs=3", f"data.root={tmp_path / 'data'}")
    with pytest.raises(UserError, match="the pictures are not those it began with"):
        resume(copied, moved)


def test_an_evaluation_tells_of_changed_captions(
    smoke: Smoke, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(copied, "test", smoke.config("data.seed=7"))
    assert "is not the file this run was trained with" in capsys.readouterr().out
    assert json.loads((copied / "scores-test.json").read_text())["images"] == 4


def test_an_evaluation_says_what_the_captions_are_like(
    smoke: Smoke, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(copied, "val", smoke.config())
    scores = json.loads((copied / "scores-val.json").read_text())
    figures = {name for name in scores if name.startswith("captions/")}
    assert {"captions/mean length in words", "captions/share unfinished"} <= figures
    assert 0 <= scores["captions/share unfinished"] <= 1
    assert scores["people/share copied from training"] == 0
    assert not any(isinstance(value, dict | list) for value in scores.values())  # flat
    assert "share copied from training" in capsys.readouterr().out


def test_the_signature_says_what_was_scored_and_how_it_was_written(
    smoke: Smoke, copied: Path
) -> None:
    evaluate(copied, "test", smoke.config())
    of_val, of_test = (
        dict(pair.split(":", 1) for pair in signature.split("|"))
        for split in ("val", "test")
        for signature in [json.loads((copied / f"scores-{split}.json").read_text())["signature"]]
    )
    assert (of_val["split"], of_test["split"]) == ("val", "test")
    assert of_val["split-sha256"] != of_test["split-sha256"]
    names = ("beam", "length_penalty", "min_length", "max_length", "allow_unknown", "end-token")
    assert [of_val[name] for name in names] == ["3", "0.7", "1", "8", "no", "not-scored"]
    assert "repeatable" not in of_val
    for words, told in (([], "none"), (["a", "on"], "a,on")):
        search = replace(load_run(copied).search, repeatable=words)
        context = evaluation._context(replace(load_run(copied), search=search), "val")
        assert context["repeatable"] == told


def test_every_look_at_the_test_split_is_written_down(
    smoke: Smoke, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "test_looks" not in record_of(copied)
    evaluate(copied, "val", smoke.config())
    assert "test_looks" not in record_of(copied)
    evaluate(copied, "test", smoke.config())
    (first,) = record_of(copied)["test_looks"]
    evaluate(copied, "test", smoke.config())
    assert record_of(copied)["test_looks"][0] == first
    assert len(record_of(copied)["test_looks"]) == 2
    assert "looked at 1 times before" in capsys.readouterr().out


def test_alarms_are_said_kept_and_lifted(
    smoke: Smoke,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(showtell.metrics.alarms, "LEAST_IMAGES", 1)
        patch.setattr(showtell.metrics.alarms, "UNFINISHED", -1.0)
        evaluate(copied, "val", smoke.config())
    assert "unfinished" in {alarm["name"] for alarm in record_of(copied)["alarms"]["val"]}
    assert "of the captions were cut off at 8 words; likely cause: " in capsys.readouterr().out
    evaluate(copied, "val", smoke.config())
    assert record_of(copied)["alarms"] == {}


def test_what_is_wrong_with_the_input_is_said_before_the_training(
    smoke: Smoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(showtell.metrics.alarms, "LEAST_IMAGES", 1)
    monkeypatch.setattr(FeatureStore, "gather", lambda self, at: np.ones((len(at), *self.shape)))
    images = smoke.folder.parent / "data"
    same = shutil.copytree(images, tmp_path / "data")
    for split in ("train", "val"):
        first = sorted(same.rglob(f"{split}_*.jpg"))[0]
        first.write_bytes(sorted(same.rglob("train_*.jpg"))[-1].read_bytes())
    overrides = (f"output.root={tmp_path / 'runs'}", f"data.root={same}", "trainer.max_epochs=1")
    folder = train(smoke.config(*overrides))
    kinds = [alarm["name"] for alarm in record_of(folder)["alarms"]["training"]]
    assert {"features", "shared images"} <= set(kinds)
    assert "warning: before the training, 100% of the feature" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_named(smoke: Smoke, tmp_path: Path) -> None:
    elsewhere = (f"data.root={tmp_path}", "data.test_images=0")
    with pytest.raises(UserError, match="no test images; it has train, val"):
        evaluate(smoke.folder, "test", smoke.config(*elsewhere))


def test_one_batch_touches_every_part(smoke: Smoke, tmp_path: Path) -> None:
    folder = train(smoke.config("debug=one_batch", f"output.root={tmp_path}"))
    assert record_of(folder)["status"] == "finished"
    assert len(json.loads((folder / "captions-val.json").read_text())) == 4


@pytest.mark.slow
def test_overfit_learns_by_heart_and_names_what_it_scored(smoke: Smoke, tmp_path: Path) -> None:
    wide = [f"model.{size}=256" for size in ("embedding_width", "hidden_size", "dense_size")]
    long = ("decoding.max_length=20", "encoder.preprocessing.size=224")
    folder = train(smoke.config("debug=overfit", f"output.root={tmp_path}", *wide, *long))
    scores = json.loads((folder / "scores-train.json").read_text())
    assert scores["BLEU-4"] > 0.9
    assert not (folder / "scores-val.json").exists()


def test_captions_of_few_words_have_no_constant_to_be_compared_with() -> None:
    """The best constant caption is found by BLEU-4."""
    short = {"a.jpg": ["red dog", "a dog"], "b.jpg": ["blue cat", "a cat"]}
    found = evaluation._yardsticks(short, short, {"a.jpg": "red dog", "b.jpg": "blue cat"})
    assert "constant caption" not in {each.name for each in found}


def test_captions_are_written_of_all_views_together(smoke: Smoke, tmp_path: Path) -> None:
    views = "views=original+mirrored"
    wide = "model.embedding_width=60"
    config = smoke.config("model=attention_glove", wide, views, f"output.folder={tmp_path / 'run'}")
    folder = train(config)
    run, data = load_run(folder), build("data", config["data"])
    assert run.views == ("original", "mirrored")
    images = data.split("val")
    store = features_of(images, run.encoder, "grid", config)
    turned = features_of(images, run.encoder, "grid", config, view="mirrored")
    ids = [image.image_id for image in images]
    both = [torch.from_numpy(each.gather(each.index(ids))).float() for each in (store, turned)]
    expected = run.write(torch.cat(both, dim=1))
    saved = json.loads((folder / "captions-val.json").read_text())
    assert [row["caption"] for row in saved] == expected
    assert run.caption([image.path for image in images]) == expected
    evaluate(folder, "val", config)
    signature = json.loads((folder / "scores-val.json").read_text())["signature"]
    assert "|views:original+mirrored|" in signature
    (attention,) = run.attend([images[0].path], ["a dog"])
    assert attention.weights.shape == (2, 2, 2)  # of the original alone


def test_rewards_know_what_is_seen_of_the_training_images(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Watched(LeftOut):
        def __init__(self, image_ids: Any, captions: Any, features: Any) -> None:
            told.append((list(image_ids), torch.cat(list(features))))
            super().__init__(image_ids, captions, features)

    monkeypatch.setattr("showtell.training.objectives.LeftOut", Watched)
    overrides = ("objective=expected", f"start_from={smoke.folder}", "trainer.max_epochs=1")
    views = "original+mirrored"
    config = smoke.config(*overrides, f"views={views}", f"output.folder={tmp_path / 'run'}")
    run = load_run(train(config))
    ((image_ids, features),) = told
    training = build("data", config["data"]).split("train")
    assert image_ids == [image.image_id for image in training]
    encoded = encode(
        [image.path for image in training],
        run.encoder,
        kind="pooled",
        batch_size=len(training),
        device=run.device,
        views=views.split("+"),
    )
    seen = torch.stack([torch.from_numpy(each).float() for each in encoded])
    torch.testing.assert_close(features, seen, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("views", ["mirrored", "original+sideways"])
def test_views_there_are_not_are_told(smoke: Smoke, tmp_path: Path, views: str) -> None:
    config = smoke.config(f"views={views}", f"features.root={tmp_path / 'features'}")
    with pytest.raises(UserError, match=f"views={views}".replace("+", r"\+")):
        train(config)
    assert not (tmp_path / "features").exists()  # told before the work


def test_a_run_of_before_there_were_views_is_evaluated(smoke: Smoke, copied: Path) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    del config["views"], config["optim"]["averaging"], config["optim"]["encoder_lr"]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    record = record_of(copied)
    del record["views"]
    (copied / "run.json").write_text(json.dumps(record))
    saved = saved_config(copied / "config.yaml", [], [])
    assert (saved["views"], saved["optim"]["averaging"]) == ("original", 0.0)
    assert saved["optim"]["encoder_lr"] is None
    before = (copied / "captions-val.json").read_text()
    evaluate(copied, "val", saved)
    assert (copied / "captions-val.json").read_text() == before
