"""Tuning an encoder: what it learns from captions, and that runs carry what came of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Smoke
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from showtell import cli, evaluation, experiment
from showtell.caption import load_run
from showtell.config import build, compose
from showtell.errors import UserError
from showtell.locks import open_locked
from showtell.parts import tune_encoder
from showtell.runs import LEARNED_IN, encoder_weights
from showtell.training import tuning
from showtell.training.tuning import (
    TUNED_BY,
    TuningSettings,
    WordTuner,
    frequent_words,
    tune,
    tuned_by_of,
    word_targets,
)
from showtell.types import CaptionedImage
from showtell.vision import encoder as encoders
from showtell.vision.encoder import Encoder, efficientnet_lite, joined, parts_of, rebuild_encoder
from showtell.vision.images import ImageError, Preprocessing
from showtell.vision.weights import facts_of, half_file

JOIN = Path(__file__).parents[2] / "scripts" / "join_encoders.py"
PREPROCESSING = Preprocessing(64, "whole", 1, "bicubic", (0.5,) * 3, (0.5,) * 3)


def encoder() -> Encoder:
    return efficientnet_lite(size=0, weights=None, preprocessing=PREPROCESSING)


def image(number: int, *captions: str, folder: Path = Path()) -> CaptionedImage:
    return CaptionedImage(f"{number}.png", folder / f"{number}.png", captions, "train")


@pytest.fixture
def coloured(tmp_path: Path) -> list[CaptionedImage]:
    """Red pictures that are called red and blue ones that are called blue."""
    images = []
    for number in range(32):
        name, colour = (("red", (220, 30, 30)), ("blue", (30, 30, 220)))[number % 2]
        noise = np.random.default_rng(number).integers(-30, 30, (64, 64, 3))
        pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append(image(number, f"a {name} square", "a thing", folder=tmp_path))
    return images


def test_words_that_are_rare_or_everywhere_are_not_to_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "LEAST_PICTURES", 2)
    images = [
        image(1, "a dog runs", "the dog"),
        image(2, "a dog", "A cat."),
        image(3, "a cat", "a fish"),
        image(4, "a bird"),
    ]
    assert frequent_words(images, 1) == ["cat", "dog"]  # "a" is in all four, the others in one
    targets = word_targets(images, ["dog", "cat"], 1)
    assert targets.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 0.5], [0.0, 0.0]]


def test_phrases_are_named_beside_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LEAST_PICTURES", 2)
    images = [
        image(1, "A dog jumps over grass.", "a dog"),
        image(2, "dog jumps over", "over dog jumps"),
        image(3, "cat over a dog"),
        image(4, "grass"),
        image(5, "a bird"),
    ]
    # "a", "dog" and "over" are in more than half. Alphabetically where equally frequent: the same
    # in each process, which has an order of sets of its own.
    assert frequent_words(images, 1) == ["grass", "jumps"]
    phrases = frequent_words(images, 3)
    assert phrases == ["a dog", "dog jumps", "dog jumps over", "grass", "jumps", "jumps over"]
    targets = word_targets(images, phrases, 3)
    assert targets[0].tolist() == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert targets[1].tolist() == [0.0, 1.0, 0.5, 0.0, 1.0, 0.5]
    assert targets[2].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_phrases_are_learned_like_words(
    coloured: list[CaptionedImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tuned.safetensors"
    tune(encoder(), coloured, coloured, file, TuningSettings(1, 1e-3, 1, "cpu", 2))
    # "red", "a red", "red square", and those of blue.
    assert "6 phrases of 1 to 2 words to be seen in 32" in capsys.readouterr().out
    settings = {"epochs": 1, "lr": 1e-3, "seed": 1, "phrases": 2}
    assert tuned_by_of(file) == [{**settings, "network": "efficientnet_lite0", "size": 64}]


def test_it_learns_what_the_words_look_like(
    coloured: list[CaptionedImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tuned.safetensors"
    tune(encoder(), coloured, coloured, file, TuningSettings(6, 1e-3, 1, "cpu", 1))
    said = capsys.readouterr().out
    assert "2 words to be seen in 32 training pictures" in said
    losses = [float(loss) for loss in re.findall(r"val loss (\d+\.\d+)", said)]
    # Half of the captions name the colour. Who knows which colour a picture has still wonders
    # whether it is named, log(2) nats; who does not know has two words at a quarter.
    certain, ignorant = np.log(2), -2 * (0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert losses[-1] < losses[0]
    assert certain < losses[-1] < (certain + ignorant) / 2


def test_the_lower_stages_stay_and_the_file_is_an_encoder(
    coloured: list[CaptionedImage], tmp_path: Path
) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    for file in files:
        tune(encoder(), coloured, coloured, file, TuningSettings(1, 1e-3, 1, "cpu", 1))
    assert files[0].read_bytes() == files[1].read_bytes()  # the same seed
    published, tuned = encoder().body.state_dict(), load_file(files[0])
    for name, tensor in published.items():
        if name.endswith("num_batches_tracked"):
            continue
        frozen = name.startswith(("conv_stem", "bn1")) or re.match(r"blocks\.[0-3]\.", name)
        is_statistic = "running_" in name
        assert torch.equal(tensor.half(), tuned[name]) == bool(frozen or is_statistic), name
    loaded = efficientnet_lite(size=0, weights=str(files[0]), preprocessing=PREPROCESSING)
    assert loaded.identity != encoder().identity
    assert rebuild_encoder(loaded.identity, weights=str(files[0])).identity == loaded.identity


def test_networks_side_by_side_are_each_tuned_as_if_alone(
    coloured: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, names = (
        TuningSettings(1, 1e-3, 1, "cpu", 1),
        ["efficientnet_lite0", "efficientnet_lite1"],
    )
    both, alone = str(tmp_path / "both.safetensors"), tmp_path / "alone.safetensors"
    side_by_side = joined(networks=names, weights=None, preprocessing=PREPROCESSING)
    tune(side_by_side, coloured, coloured, Path(both), settings)
    (told,) = tuned_by_of(Path(both))
    assert (told["network"], told["size"]) == ("+".join(names), 64)
    tune(encoder(), coloured, coloured, alone, settings)
    tuned = load_file(both)
    for name, tensor in load_file(alone).items():
        assert torch.equal(tuned[f"networks.0.{name}"], tensor), name
    # It needs the published weights of none of them, whose packages may be missing elsewhere.
    monkeypatch.setattr(encoders, "_packaged_file", lambda name: pytest.fail(name))
    loaded = joined(networks=names, weights=both, preprocessing=PREPROCESSING)
    assert loaded.identity != side_by_side.identity
    assert rebuild_encoder(loaded.identity, weights=both).identity == loaded.identity


def tuned_file(size: int, folder: Path, /, **facts: float | str) -> Path:
    network = efficientnet_lite(size=size, weights=None, preprocessing=PREPROCESSING)
    file = folder / f"{size}.safetensors"
    told = {"epochs": 4, "lr": 3e-4, "seed": 1, **facts}
    file.write_bytes(half_file(network.body, {TUNED_BY: json.dumps(told)}))
    return file


def test_networks_tuned_apart_are_joined_in_their_order(tmp_path: Path) -> None:
    names = ["efficientnet_lite1", "efficientnet_lite0"]
    files = [
        tuned_file(1, tmp_path, network=names[0], size=64),
        tuned_file(0, tmp_path, seed=2, phrases=3, network=names[1], size=64),
    ]
    output = tmp_path / "both.safetensors"
    options = runpy.run_path(str(JOIN))["join"](files, output)
    assert [(facts["seed"], facts["phrases"]) for facts in tuned_by_of(output)] == [(1, 1), (2, 3)]
    chosen = compose(options)["encoder"]
    assert (chosen["networks"], chosen["weights"]) == (names, str(output))
    assert chosen["preprocessing"]["size"] == 64
    both = joined(networks=names, weights=str(output), preprocessing=PREPROCESSING)
    alone = [
        efficientnet_lite(size=size, weights=str(file), preprocessing=PREPROCESSING)
        for size, file in zip((1, 0), files, strict=True)
    ]
    assert [part.identity for part in parts_of(both)] == [part.identity for part in alone]


def test_what_cannot_be_joined_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, output = runpy.run_path(str(JOIN)), tmp_path / "both.safetensors"
    tuned, bare = tuned_file(0, tmp_path, seed=1), tmp_path / "bare.safetensors"
    bare.write_bytes(half_file(encoder().body, {}))
    with pytest.raises(UserError, match="name at least two"):
        script["join"]([tuned], output)
    with pytest.raises(UserError, match=r"bare\.safetensors: not a single network as .*; name a "):
        script["join"]([tuned, bare], output)
    learned = json.dumps({"before": facts_of(tuned)})
    bare.write_bytes(half_file(encoder().body, {LEARNED_IN: learned}))
    with pytest.raises(UserError, match=r"bare\.safetensors: not a single network as"):
        script["join"]([tuned, bare], output)
    seen = [tuned_file(n, tmp_path, network="lite", size=n * 8 + 240) for n in (1, 2)]
    with pytest.raises(UserError, match=r"1\.safetensors to 248 px, .*2\.safetensors to 256 px: "):
        script["join"]([tuned, *seen], output)
    # Files of before do not tell their network, so that nothing can be said of how to take them.
    assert script["join"]([tuned, tuned], output) == []
    with pytest.raises(UserError, match=r"a \.safetensors file that does not exist yet"):
        script["join"]([tuned, tuned], output)
    with pytest.raises(UserError, match="not a single network"):
        script["join"]([tuned, output], tmp_path / "three.safetensors")
    monkeypatch.setattr(sys, "argv", ["join_encoders.py", str(tuned), "--output", "x.safetensors"])
    with pytest.raises(SystemExit) as stopped:
        script["main"]()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: one file alone")


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "7",
        "[1]",
        "{}",
        '{"epochs": "1; rm", "lr": 0.1, "seed": 1}',
        '{"epochs": 1, "lr": 0.1, "seed": 1, "network": "one"}',
    ],
)
def test_a_file_that_says_nothing_sensible_of_its_tuning_is_named(
    told: str, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.safetensors"
    file.write_bytes(half_file(nn.Linear(1, 1), {TUNED_BY: told}))
    with pytest.raises(UserError, match=r"tuned\.safetensors: it says nothing sensible"):
        tuned_by_of(file)
    file.write_bytes(half_file(nn.Linear(1, 1), {LEARNED_IN: told}))
    with pytest.raises(UserError, match=r"tuned\.safetensors: it says nothing sensible"):
        tuned_by_of(file)


def test_how_a_network_was_tuned_is_told_after_it_learned(tmp_path: Path) -> None:
    file, before = tmp_path / "learned.safetensors", facts_of(tuned_file(0, tmp_path, seed=7))
    file.write_bytes(half_file(nn.Linear(1, 1), {LEARNED_IN: json.dumps({"before": before})}))
    assert [facts["seed"] for facts in tuned_by_of(file)] == [7]
    file.write_bytes(half_file(nn.Linear(1, 1), {}))
    assert tuned_by_of(file) == []


def test_a_diverged_tuning_leaves_no_checkpoint_of_any_network(
    coloured: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would refuse the lower rate that is the remedy."""
    names = ["efficientnet_lite0", "efficientnet_lite1"]
    both = joined(networks=names, weights=None, preprocessing=PREPROCESSING)
    file, step = tmp_path / "tuned.safetensors", WordTuner.training_step
    first = tmp_path / "tuned.1.ckpt"
    was_there: list[bool] = []

    def diverging(self: WordTuner, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        was_there.append(first.exists())
        return step(self, (batch[0], batch[1] * (math.nan if first.exists() else 1)), batch_idx)

    monkeypatch.setattr(WordTuner, "training_step", diverging)
    with pytest.raises(UserError, match="lower --lr"):
        tune(both, coloured, coloured, file, TuningSettings(1, 1e-3, 1, "cpu", 1))
    assert was_there == [False, True]
    assert not list(tmp_path.glob("tuned*"))


class BrokenOffError(Exception):
    """Whatever ends a process."""


@pytest.mark.parametrize("broken_at", [4, 10])
def test_broken_off_it_goes_on_to_the_same_weights(
    broken_at: int,
    coloured: list[CaptionedImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two networks of three epochs of two steps each: in the second epoch of either."""
    monkeypatch.setattr(tuning, "BATCH_SIZE", 16)
    names = ["efficientnet_lite0", "efficientnet_lite1"]
    settings = TuningSettings(3, 1e-3, 1, "cpu", 1)

    def tuned(file: Path, settings: TuningSettings = settings) -> bytes:
        both = joined(networks=names, weights=None, preprocessing=PREPROCESSING)
        tune(both, coloured, coloured, file, settings)
        return file.read_bytes()

    unbroken = tuned(tmp_path / "unbroken.safetensors")
    file, steps, step = tmp_path / "tuned.safetensors", iter(range(1, 99)), WordTuner.training_step

    def breaking(self: WordTuner, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if next(steps) == broken_at:
            raise BrokenOffError
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(WordTuner, "training_step", breaking)
        with pytest.raises(BrokenOffError):
            tuned(file)
    assert not file.exists()
    with pytest.raises(UserError, match=r"tuned\.1\.ckpt is damaged, or of a tuning with other"):
        tuned(file, TuningSettings(3, 1e-4, 1, "cpu", 1))
    capsys.readouterr()

    done: list[int] = []

    def counting(self: WordTuner, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        done.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(WordTuner, "training_step", counting)
    assert tuned(file) == unbroken
    assert len(done) == 12 - (broken_at - 2)  # no more than the broken epoch twice
    assert f"goes on after epoch 1 of 3: {tmp_path}/tuned." in capsys.readouterr().out
    assert [each.name for each in tmp_path.glob("tuned*")] == ["tuned.safetensors"]


def test_a_checkpoint_that_cannot_be_read_is_named(
    coloured: list[CaptionedImage], tmp_path: Path
) -> None:
    for content in (b"nothing", None):
        file = tmp_path / "tuned.1.ckpt"
        if content is None:
            torch.save({"state_dict": {}}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(UserError, match=r"tuned\.1\.ckpt is damaged.*: remove it"):
            settings = TuningSettings(1, 1e-3, 1, "cpu", 1)
            tune(encoder(), coloured, coloured, tmp_path / "tuned.safetensors", settings)


def test_two_processes_do_not_tune_to_one_file(smoke: Smoke, tmp_path: Path) -> None:
    config, file = smoke.config(), tmp_path / "tuned.safetensors"
    data = build("data", config["data"])
    with open_locked(tmp_path / "tuned.lock"), pytest.raises(UserError, match="by another process"):
        tune_encoder(config, data, file, epochs=1, lr=1e-3, phrases=1)
    with pytest.raises(UserError, match="no word stands in the captions of 15 training pictures"):
        tune_encoder(config, data, file, epochs=1, lr=1e-3, phrases=1)
    assert not list(tmp_path.iterdir())  # no lock is left


def test_a_run_carries_its_tuned_encoder(smoke: Smoke, tmp_path: Path) -> None:
    config = smoke.config()
    data = build("data", config["data"])
    file = tmp_path / "tuned.safetensors"
    own = build("encoder", config["encoder"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "LEAST_PICTURES", 3)
        settings = TuningSettings(1, 1e-3, 1, "cpu", 1)
        tune(own, data.split("train"), data.split("val"), file, settings)
    changes = (f"encoder.weights={file}", "trainer.max_epochs=1")
    config = smoke.config(*changes, f"output.folder={tmp_path / 'run'}")
    folder = experiment.train(config, data)
    captions = load_run(folder).caption([each.path for each in data.split("val")])
    kept = encoder_weights(folder)
    assert kept is not None and kept.read_bytes() == file.read_bytes()

    file.unlink()
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_run(moved).caption([each.path for each in data.split("val")]) == captions
    found = evaluation.evaluate(moved, "val", config, data)
    assert list(found.captions.values()) == captions

    longer = {**config, "trainer": {**config["trainer"], "max_epochs": 2}}
    experiment.resume(moved, longer, data)
    assert yaml.safe_load((moved / "config.yaml").read_text())["encoder"]["weights"] == str(file)


def test_a_tuning_that_goes_on_from_another_says_so(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "LEAST_PICTURES", 3)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    for given, file in ((None, once), (once, twice)):
        config = smoke.config(*([f"encoder.weights={given}"] if given else []))
        data = build("data", config["data"])
        tune_encoder(config, data, file, epochs=1, lr=1e-4, phrases=1)
    told = [tuned_by_of(file)[0] for file in (once, twice)]
    assert "weights" not in told[0] and told[1] == {**told[0], "weights": "once.safetensors"}


def test_what_anybody_can_fetch_is_not_carried(smoke: Smoke, tmp_path: Path) -> None:
    state = build("encoder", smoke.config()["encoder"]).body.state_dict()
    for name, is_carried in (("mine.pth", True), ("network-{}.pth", False)):
        torch.save(state, tmp_path / "weights")
        digits = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
        file = (tmp_path / "weights").rename(tmp_path / name.format(digits))
        changes = ("trainer.max_epochs=1", f"encoder.weights={file}")
        folder = tmp_path / f"run-{is_carried}"
        config = smoke.config(*changes, f"output.folder={folder}")
        experiment.train(config, build("data", config["data"]))
        assert (encoder_weights(folder) is not None) == is_carried


def test_what_cannot_be_tuned_is_told(coloured: list[CaptionedImage], tmp_path: Path) -> None:
    settings = TuningSettings(1, 1e-3, 1, "cpu", 1)
    with pytest.raises(UserError, match="no word stands in the captions of 15 training pictures"):
        tune(encoder(), coloured[:8], coloured, tmp_path / "file", settings)
    with pytest.raises(UserError, match="lower --lr"):
        tune(encoder(), coloured, coloured, tmp_path / "file", TuningSettings(3, 1e30, 1, "cpu", 1))
    for rate in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="lr above 0"):
            TuningSettings(1, rate, 1, "cpu", 1)
    other = Encoder(nn.Conv2d(3, 6, 8, 8), network="other", weights="", preprocessing=PREPROCESSING)
    with pytest.raises(UserError, match="other cannot be tuned; choose encoder=efficientnet_lite0"):
        tune(other, coloured, coloured, tmp_path / "file", settings)
    Image.open(coloured[5].path).save(tmp_path / "whole.png")
    coloured[5].path.write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"5\.png: the picture is damaged"):
        tune(encoder(), coloured, coloured, tmp_path / "file", settings)
    assert not list(tmp_path.glob("file*"))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("tuned.pth", "--output tuned.pth: give a name that ends in .safetensors"),
        ("old.safetensors", "old.safetensors exists; name another --output or remove it"),
        ("/proc/none/tuned.safetensors", "tuned.safetensors cannot be written"),
    ],
)
def test_a_place_that_cannot_be_is_told_before_the_work(
    output: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.safetensors").touch()
    with pytest.raises(SystemExit, match="1"):
        cli.main(["tune", "data.root=nowhere", "--output", output])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("option", ["optim.lr=1e-4", "views=original", "model=merge_glove"])
def test_an_option_without_effect_is_told(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        cli.main(["tune", option, "--output", str(tmp_path / "tuned.safetensors")])
    assert f"{option} has no effect on `showtell tune`" in capsys.readouterr().err
