"""An encoder that learns with the decoder: what moves, what is kept, and that runs can go on."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Smoke
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from two_processes import in_two

import showtell.inputs
import showtell.parts
from showtell import evaluation, experiment, runs
from showtell.caption import load_run
from showtell.config import build
from showtell.data.batches import CaptionBatches, EncodedCaptions
from showtell.errors import UserError
from showtell.runs import BEST_WEIGHTS, LEARNED_ENCODER
from showtell.text.vocabulary import Vocabulary
from showtell.training.callbacks import KeepBest
from showtell.training.module import CaptioningModule
from showtell.types import CaptionedImage, FeatureKind
from showtell.vision.encoder import Encoder, efficientnet_lite
from showtell.vision.finetuning import TrainableStages
from showtell.vision.images import Preprocessing, load_image
from showtell.vision.pictures import OnTheFlyFeatures, PixelSource, check_readable

pytestmark = pytest.mark.usefixtures("without_java")

PREPROCESSING = Preprocessing(64, "whole", 1, "bicubic", (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
ATTENTIVE = ("model=attention_glove", "model.embedding_width=60", "optim.averaging=0.5")
LEARNING = (*ATTENTIVE, "optim.encoder_lr=1e-3")
IS_FROZEN = re.compile(r"conv_stem|bn1|blocks\.[0-3]\.|.*running_")


def encoder() -> Encoder:
    return efficientnet_lite(size=0, weights=None, preprocessing=PREPROCESSING)


def train(config: dict[str, Any]) -> Path:
    return experiment.train(config, build("data", config["data"]))


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def curve(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


@pytest.fixture(scope="module")
def learned(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run whose encoder learned too, and the captions of each of its validations."""
    folder, written = tmp_path_factory.mktemp("learned") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("showtell.metrics.meteor.find_java", lambda: None)
        before = KeepBest.on_validation_end

        def note(keep: KeepBest, trainer: Any, module: Any) -> None:
            before(keep, trainer, module)
            written.append((keep.best_epoch, module.generated.captions()))

        patch.setattr(KeepBest, "on_validation_end", note)
        train(smoke.config(*LEARNING, f"output.folder={folder}"))
    return folder, written


@pytest.mark.parametrize("kind", ["pooled", "grid"])
def test_it_sees_what_the_encoder_sees(kind: FeatureKind) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    learning = TrainableStages(encoder(), kind)
    lower = learning.frozen_stages(torch.device("cpu"))
    features = learning(lower(torch.from_numpy(pixels).float()))
    images = torch.stack([PREPROCESSING.normalised(each) for each in pixels])
    expected = getattr(encoder()(images), kind)
    assert features.shape == expected.shape and not features.isnan().any()
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)
    assert not learning.train().training  # an image's features do not depend on its company


def test_gradients_reach_the_upper_stages_and_no_others() -> None:
    learning = TrainableStages(encoder(), "grid")
    pixels = torch.rand(2, 64, 64, 3) * 255
    learning(learning.frozen_stages(torch.device("cpu"))(pixels)).square().sum().backward()
    for name, parameter in learning.network.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert has_gradient == (IS_FROZEN.match(name) is None), name


def test_what_cannot_be_cut_is_told_and_the_encoder_it_began_with_stays() -> None:
    other = Encoder(
        torch.nn.Conv2d(3, 6, 8, 8), network="x", weights="", preprocessing=PREPROCESSING
    )
    with pytest.raises(UserError, match=r"x cannot be tuned; choose encoder=efficientnet_lite0, "):
        TrainableStages(other, "grid")
    start = encoder()
    learning = TrainableStages(start, "grid")
    with torch.no_grad():
        learning.network.conv_head.weight += 1
    assert torch.equal(start.body.conv_head.weight, encoder().body.conv_head.weight)  # type: ignore[arg-type, union-attr]
    assert not any(parameter.requires_grad for parameter in start.parameters())


def test_it_is_kept_in_half_precision_and_known_by_that() -> None:
    learning = TrainableStages(encoder(), "grid")
    kept = learning.rounded()
    for name, tensor in kept.body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, learning.network.state_dict()[name].half().float()), name
    assert kept.identity.weights != encoder().identity.weights
    assert kept.identity == TrainableStages(kept, "grid").rounded().identity


@pytest.fixture
def photographs(tmp_path: Path) -> list[CaptionedImage]:
    images = []
    for number in range(5):
        pixels = np.random.default_rng(number).integers(256, size=(80, 100, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        images.append(CaptionedImage(f"{number}", path, ("a thing",), "train"))
    return images


def test_a_random_crop_depends_on_seed_epoch_and_picture_alone(
    photographs: list[CaptionedImage],
) -> None:
    def shown(order: Sequence[int], seed: int | None, epoch: int) -> list[Any]:
        pictures = PixelSource(photographs, PREPROCESSING, seed, epoch)
        places = pictures.index([str(number) for number in order])
        assert places.tolist() == list(order)
        return list(pictures.gather(places))

    first = shown(range(5), 7, 2)
    assert first[0].shape == (64, 64, 3) and first[0].dtype == np.uint8
    by_hand = PREPROCESSING.random_crop(
        load_image(photographs[3].path), np.random.default_rng((7, 2, 3))
    )
    assert np.array_equal(first[3], by_hand)
    alone = [shown([number], 7, 2)[0] for number in (4, 0, 3)]
    assert all(np.array_equal(a, first[n]) for a, n in zip(alone, (4, 0, 3), strict=True))
    for seed, epoch in ((7, 3), (8, 2)):
        assert not any(map(np.array_equal, shown(range(5), seed, epoch), first))
    whole = PREPROCESSING.pixels(load_image(photographs[1].path))
    assert np.array_equal(shown([1], None, 0)[0], whole)


def test_a_picture_that_cannot_be_read_is_told_before_the_work(
    photographs: list[CaptionedImage],
) -> None:
    check_readable(photographs)
    photographs[2].path.write_bytes(photographs[2].path.read_bytes()[:200])
    seen = OnTheFlyFeatures(
        photographs, "grid", views=("original",), batch_size=2, device=torch.device("cpu")
    )
    seen.encoder = encoder()
    for read in (
        lambda: check_readable(photographs),
        lambda: PixelSource(photographs, PREPROCESSING, 1).gather(np.array([2])),
        lambda: seen.gather(np.array([1, 2])),
    ):
        with pytest.raises(UserError, match=r"2\.png: the picture is damaged"):
            read()


class StoredCrops:
    """What the frozen encoder sees of the random crops, in place of the views of a store."""

    images: Sequence[CaptionedImage] = ()
    preprocessing = PREPROCESSING
    network: Encoder

    def __init__(self, stores: Any, seed: int, epoch: int) -> None:
        self._shown = PixelSource(self.images, self.network.preprocessing, seed, epoch)

    def index(self, image_ids: Sequence[str]) -> Any:
        return self._shown.index(image_ids)

    def gather(self, positions: Any) -> Any:
        pixels = self._shown.gather(positions)
        images = torch.stack([self.network.preprocessing.normalised(each) for each in pixels])
        return self.network(images).grid.numpy()


def test_at_a_rate_of_zero_it_learns_what_it_learns_of_a_frozen_encoder(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_zero = train(smoke.config(*ATTENTIVE, "optim.encoder_lr=0", f"output.root={tmp_path}"))
    config = smoke.config(*ATTENTIVE, f"output.root={tmp_path}")
    StoredCrops.network = build("encoder", config["encoder"])
    StoredCrops.images = build("data", config["data"]).split("train")
    monkeypatch.setattr(showtell.parts, "DrawnViews", StoredCrops)
    frozen = train(config)
    losses = curve(frozen, "train/loss")
    assert len(losses) == 2
    assert curve(at_zero, "train/loss") == pytest.approx(losses, abs=2e-4)
    # Validated with weights in half precision.
    assert curve(at_zero, "val/loss") == pytest.approx(curve(frozen, "val/loss"), abs=2e-2)
    assert record_of(frozen)["encoder"].keys() == {"weights", "identity"}


def test_the_upper_stages_are_kept_with_the_decoder_of_their_validation(
    smoke: Smoke, learned: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder, written = learned
    best_epoch, _ = written[-1]
    captions = written[best_epoch][1]
    saved = {
        row["image_id"]: row["caption"]
        for row in json.loads((folder / "captions-val.json").read_text())
    }
    assert saved == captions

    start = build("encoder", smoke.config()["encoder"])
    kept = load_file(folder / LEARNED_ENCODER)
    for name, tensor in start.body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            stays = IS_FROZEN.match(name) is not None
            assert torch.equal(tensor.half(), kept[name]) == stays, name
    described = record_of(folder)["encoder"]
    assert described["began_with"] == start.identity.weights != described["identity"]["weights"]

    moved = shutil.copytree(folder, tmp_path / "moved")
    config = smoke.config(f"features.root={tmp_path / 'features'}")
    data = build("data", config["data"])
    run = load_run(moved)
    assert run.encoder.identity.to_json() == described["identity"]
    images = data.split("val")
    assert run.caption([image.path for image in images]) == [captions[i.image_id] for i in images]
    evaluation.evaluate(moved, "val", config, data)
    assert (moved / "captions-val.json").read_bytes() == (folder / "captions-val.json").read_bytes()
    before, after = (json.loads((each / "scores-val.json").read_text()) for each in (folder, moved))
    assert before["CIDEr"] == after["CIDEr"] and before["BLEU-1"] == after["BLEU-1"]
    assert max(curve(folder, "val/BLEU-4")) == pytest.approx(before["BLEU-4"], abs=1e-6)


@pytest.mark.parametrize("step", [1, 4])  # of three an epoch
def test_an_interrupted_run_goes_on_exactly(
    smoke: Smoke,
    learned: tuple[Path, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    def interrupt(module: CaptioningModule, optimizer: object) -> None:
        if module.global_step == step:
            raise KeyboardInterrupt

    # It began with a file that is gone when it goes on; of two kinds none must be left behind.
    file = tmp_path / "weights.pth"
    torch.save(build("encoder", smoke.config()["encoder"]).body.state_dict(), file)
    config = smoke.config(*LEARNING, f"output.folder={tmp_path / 'run'}", f"encoder.weights={file}")
    with monkeypatch.context() as patch:
        patch.setattr(CaptioningModule, "on_before_zero_grad", interrupt)
        with pytest.raises(SystemExit):
            train(config)
    file.unlink()
    folder, unbroken = tmp_path / "run", learned[0]
    if step > 3:
        load_run(folder).caption([])  # usable as it is
        assert (
            load_run(folder).encoder.identity.weights != record_of(folder)["encoder"]["began_with"]
        )
    experiment.resume(folder, config, build("data", config["data"]))
    assert [each.name for each in (folder / "checkpoints").glob("enc*")] == ["encoder.safetensors"]
    results = ("metrics.csv", "captions-val.json", "scores-val.json")
    for name in (BEST_WEIGHTS, LEARNED_ENCODER, *results):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_a_kill_between_two_files_is_told_and_mended(
    smoke: Smoke, learned: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = []
    usual = Path.replace

    def replace(part: Path, target: Path) -> Path:
        if target.name in (BEST_WEIGHTS.name, LEARNED_ENCODER.name):
            moves.append(target.name)
            if len(moves) == 2:
                raise KeyboardInterrupt
        return usual(part, target)

    config = smoke.config(*LEARNING, f"output.folder={tmp_path / 'new'}")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(SystemExit):
            train(config)
    broken = tmp_path / "new"
    assert moves[1] in (BEST_WEIGHTS.name, LEARNED_ENCODER.name)
    assert not (broken / BEST_WEIGHTS).exists() or not (broken / LEARNED_ENCODER).exists()
    experiment.resume(broken, config, build("data", config["data"]))
    for name in (BEST_WEIGHTS, LEARNED_ENCODER, "captions-val.json"):
        assert (broken / name).read_bytes() == (learned[0] / name).read_bytes(), name


def test_an_encoder_of_another_validation_is_refused(
    learned: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder = shutil.copytree(learned[0], tmp_path / "run")
    run = load_run(folder)
    later = TrainableStages(run.encoder, "grid")
    with torch.no_grad():
        later.network.conv_head.weight += 1
    record = (folder / "run.json").read_bytes()
    runs.save_weights(folder, run.decoder, later.rounded())
    assert load_run(folder).encoder.identity == later.rounded().identity
    (folder / "run.json").write_bytes(record)  # as if killed before it
    with pytest.raises(UserError, match="are not those it was trained with"):
        _ = load_run(folder).encoder


def test_rewards_teach_the_encoder_too_and_a_run_begins_with_one_of_its_encoder(
    smoke: Smoke, learned: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder = learned[0]
    changes = (*LEARNING, "objective=self_critical", f"start_from={folder}", "trainer.max_epochs=1")
    with pytest.raises(UserError, match=f"another encoder than .* and encoder.weights={folder}"):
        train(smoke.config(*changes, f"output.root={tmp_path / 'runs'}"))
    own = f"encoder.weights={folder / LEARNED_ENCODER}"
    later = train(smoke.config(*changes, own, f"output.root={tmp_path / 'runs'}"))
    assert curve(later, "train/reward")
    states = [load_file(each / LEARNED_ENCODER) for each in (folder, later)]
    assert not torch.equal(states[0]["conv_head.weight"], states[1]["conv_head.weight"])
    assert torch.equal(states[0]["conv_stem.weight"], states[1]["conv_stem.weight"])
    began_with = record_of(later)["encoder"]["began_with"]
    assert began_with == record_of(folder)["encoder"]["identity"]["weights"]


def test_only_a_sample_is_encoded_ahead_and_captions_are_written_of_all_views(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "SAMPLED_IMAGES", 5)
    features = tmp_path / "features"
    changes = (f"features.root={features}", f"output.root={tmp_path}", "trainer.max_epochs=1")
    config = smoke.config(*LEARNING, *changes, "views=original+mirrored")
    folder = train(config)
    described = record_of(folder)["encoder"]
    stored = {described["began_with"]: [5], described["identity"]["weights"]: [4, 4]}
    found: dict[str, list[int]] = {}
    for store in features.glob("*/grid"):
        weights = json.loads((store / "identity.json").read_text())["identity"]["weights"]
        manifests = [json.loads(each.read_text()) for each in store.glob("*-*.json")]
        found.setdefault(weights, []).append(sum(len(each["image_ids"]) for each in manifests))
    assert found == stored
    saved = json.loads((folder / "captions-val.json").read_text())
    images = build("data", config["data"]).split("val")
    run = load_run(folder)
    assert run.views == ("original", "mirrored")
    assert run.caption([image.path for image in images]) == [row["caption"] for row in saved]


def test_batches_bring_pixels_of_their_epoch(photographs: list[CaptionedImage]) -> None:
    captions = EncodedCaptions(photographs, Vocabulary(["thing"], min_count=1, counts=[5]))
    shown = partial(PixelSource, photographs, PREPROCESSING, 3)
    batches = CaptionBatches(captions, shown, batch_size=2, shuffle_seed=3)
    seen: list[dict[str, Tensor]] = []
    for _ in range(2):
        seen.append({})
        for batch in batches:
            assert batch.features.dtype == torch.float32
            seen[-1] |= dict(zip(batch.image_ids, batch.features, strict=True))
    for epoch, pixels in enumerate(seen):
        expected = shown(epoch).gather(np.arange(5))
        assert all(np.array_equal(pixels[str(n)].numpy(), expected[n]) for n in range(5))


@pytest.mark.slow  # alone in its process: OpenVINO, used by other tests, may not survive a fork
def test_two_processes_learn_what_one_does(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)  # a forked process cannot use the threads that PyTorch had before
    still = [f"model.{name}_dropout=0" for name in ("image", "word", "output")]
    short = ("trainer.max_epochs=1", "trainer.batch_size=3")

    def fit(folder: str, *changes: str) -> None:
        config = smoke.config(
            *(*LEARNING, *still, *short, f"output.folder={tmp_path / folder}", *changes)
        )
        train(config)

    fit("alone")
    # They are in the group already.
    monkeypatch.setattr(experiment, "_in_process_group", lambda config: nullcontext())
    assert in_two(lambda: fit("both", "trainer.devices=2")) == [None, None]
    for name, tolerance in ((BEST_WEIGHTS, 1e-4), (LEARNED_ENCODER, 1e-3)):
        one, both = (load_file(tmp_path / each / name) for each in ("alone", "both"))
        for key, tensor in one.items():
            torch.testing.assert_close(both[key].float(), tensor.float(), atol=tolerance, rtol=1e-2)


def test_features_of_an_encoder_that_learns_are_not_stored_ahead(smoke: Smoke) -> None:
    config = smoke.config(*LEARNING)
    with pytest.raises(UserError, match="has no features to store ahead"):
        showtell.inputs.extract(config, build("data", config["data"]))
