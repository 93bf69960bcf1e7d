"""A whole small training: what it learns, what it keeps, and that it can be broken anywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from small_training import Training, build_training, pictures, weights
from torch import nn

from showtell.config import compose
from showtell.errors import UserError
from showtell.parts import Settings
from showtell.runs import BEST_WEIGHTS, LAST_CHECKPOINT
from showtell.text.tokenizer import tokenize
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.module import NonFiniteGradientError, NonFiniteLossError
from showtell.training.objectives import CrossEntropy

Make = Callable[..., Training]

# Losses in nats per token of the training in small_training.py, recorded once from a run of it: a
# change of these numbers is a change of what is computed, and belongs in a commit that says so.
# The tolerance is the difference between the float32 kernels of different processors.
GOLDEN_TRAIN_LOSSES = [3.05385017, 2.88233662, 2.78724694]
GOLDEN_VAL_LOSSES = [2.86371422, 2.72319365, 2.67956877]


@pytest.fixture
def training(tmp_path: Path) -> Make:
    """Builds trainings, each in a folder of its own."""
    numbers = itertools.count()

    def make(**changes: Any) -> Training:
        folder = changes.pop("folder", tmp_path / f"run{next(numbers)}")
        return build_training(folder, **changes)

    return make


class Losses(Callback):
    """Notes the losses of every epoch."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.val.append(float(trainer.callback_metrics["val/loss"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.train.append(float(pl_module.train_mean.compute()))


class BreakAfter(Callback):
    """Ends the training like a pulled plug once so many steps are saved."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.steps:
            raise RuntimeError("plug pulled")


def test_a_fixed_seed_gives_its_recorded_losses(training: Make) -> None:
    losses = Losses()
    training(callbacks=[losses]).fit()
    assert losses.train == pytest.approx(GOLDEN_TRAIN_LOSSES, abs=1e-5)
    assert losses.val == pytest.approx(GOLDEN_VAL_LOSSES, abs=1e-5)


def test_reduced_precision_learns_the_same_but_for_rounding(training: Make) -> None:
    """And clips as much: three figures of bfloat16, over nine steps of a clipped gradient."""
    losses = Losses()
    training(callbacks=[losses], trainer={"precision": "bf16-mixed"}).fit()
    assert losses.train != pytest.approx(GOLDEN_TRAIN_LOSSES, abs=1e-6)
    assert losses.train == pytest.approx(GOLDEN_TRAIN_LOSSES, abs=2e-2)
    assert losses.val == pytest.approx(GOLDEN_VAL_LOSSES, abs=2e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in 16-mixed")
def test_a_precision_of_gpus_is_refused_without_one() -> None:
    settings = Settings.of(compose(["trainer.precision=16-mixed"])).trainer
    with pytest.raises(UserError, match="16-mixed needs a GPU; on a CPU take bf16-mixed"):
        settings.check_precision()


def test_it_learns_a_few_images_by_heart(training: Make) -> None:
    run = training(
        dropout=0.0,
        objective=CrossEntropy(label_smoothing=0.0, scheduled_sampling=0.0),
        optimization={"schedule": "constant", "weight_decay": 0.0},
        trainer={"max_epochs": 40, "batch_size": 8},
    )
    run.fit()
    assert float(run.trainer.callback_metrics["val/BLEU-4"]) > 0.99
    run.module.generated.reset()
    batch = next(iter(run.data.val_dataloader()))
    run.module.eval()
    run.module.generated.update(
        batch.image_ids, run.module._search(run.module.typed_decoder, batch.features)
    )
    for image in pictures():
        assert run.module.generated.captions()[image.image_id] in image.captions


@pytest.mark.parametrize(
    ("steps", "averaging"), [(1, 0.0), (3, 0.5), (4, 0.0), (6, 0.5), (11, 0.0)]
)
def test_broken_anywhere_and_resumed_is_unbroken(
    training: Make, steps: int, averaging: float
) -> None:
    rules = {"optimization": {"averaging": averaging}}
    unbroken = training(**rules)
    unbroken.fit()
    broken = training(callbacks=[BreakAfter(steps)], **rules)
    with pytest.raises(RuntimeError, match="plug"):
        broken.fit()
    resumed = training(folder=broken.folder, **rules)
    checkpoint = broken.folder / LAST_CHECKPOINT
    saved = AtomicCheckpointIO().load_checkpoint(checkpoint)
    assert saved["global_step"] == steps
    resumed.curves.rewind(steps)
    resumed.fit(checkpoint)
    assert resumed.trainer.global_step == unbroken.trainer.global_step == 12
    expected = weights(unbroken)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    best = [load_file(run.folder / BEST_WEIGHTS) for run in (unbroken, resumed)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    curves = [(run.folder / "metrics.csv").read_text() for run in (unbroken, resumed)]
    assert curves[0] == curves[1]


def test_a_loss_that_is_not_finite_stops_before_the_update(training: Make) -> None:
    run = training()
    before = weights(run)
    output = run.module.decoder.output
    assert isinstance(output, nn.Linear)
    output.register_forward_hook(lambda module, inputs, scores: scores * math.inf)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 0.*\.jpg.*optim\.lr"):
        run.fit()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())


def test_a_gradient_that_is_not_finite_stops_before_the_update(training: Make) -> None:
    run = training()
    before = weights(run)
    bias = run.module.decoder.output.bias
    bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteGradientError, match=r"is (inf|nan) at step 0.*optim\.lr"):
        run.fit()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())


def test_the_best_weights_are_those_of_the_best_validation(training: Make) -> None:
    class Scores(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[float, dict[str, torch.Tensor]]] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            score = float(trainer.callback_metrics["val/BLEU-4"])
            state = {k: v.clone() for k, v in pl_module.decoder.state_dict().items()}
            self.seen.append((score, state))

    scores = Scores()
    run = training(callbacks=[scores], trainer={"max_epochs": 6})
    run.fit()
    _, best = max(scores.seen, key=lambda pair: pair[0])  # the first of equals, as KeepBest
    kept = load_file(run.folder / BEST_WEIGHTS)
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_the_mean_of_the_weights_is_what_is_validated_and_kept(training: Make) -> None:
    class Steps(Callback):
        """The weights after every step, and the mean that they ought to have."""

        def __init__(self) -> None:
            self.mean: torch.Tensor | None = None
            self.steps = 0

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            now = pl_module.decoder.output.weight.detach().double()
            kept = min(0.2, (1 + self.steps) / (10 + self.steps))
            self.mean = now if self.mean is None else kept * self.mean + (1 - kept) * now
            self.steps += 1

    steps = Steps()
    run = training(callbacks=[steps], optimization={"averaging": 0.2}, trainer={"max_epochs": 1})
    run.fit()
    kept = load_file(run.folder / BEST_WEIGHTS)["output.weight"]
    assert steps.steps == 4 and steps.mean is not None
    torch.testing.assert_close(kept.double(), steps.mean, atol=1e-7, rtol=0)
    assert not torch.allclose(kept, weights(run)["output.weight"], atol=1e-4)

    run.module.eval()
    losses = Losses()
    again = training(callbacks=[losses], optimization={"lr": 0.0}, trainer={"max_epochs": 1})
    again.module.decoder.load_state_dict(load_file(run.folder / BEST_WEIGHTS))
    again.fit()
    assert losses.val[0] == pytest.approx(float(run.trainer.callback_metrics["val/loss"]), abs=1e-6)


def test_training_stops_when_validation_no_longer_improves(training: Make) -> None:
    run = training(optimization={"lr": 0.0}, trainer={"max_epochs": 30}, patience=2)
    run.fit()
    assert run.trainer.current_epoch == 3


def test_validation_bleu_is_pycocoevalcap_bleu(training: Make) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    run = training(trainer={"max_epochs": 6})
    run.fit()
    reported = [float(run.trainer.callback_metrics[f"val/BLEU-{n}"]) for n in range(1, 5)]
    run.module.eval()
    for batch in run.data.val_dataloader():
        hypotheses = run.module._search(run.module.typed_decoder, batch.features)
        run.module.generated.update(batch.image_ids, hypotheses)
    captions = {image_id: [text] for image_id, text in run.module.generated.captions().items()}
    references = {image.image_id: list(image.captions) for image in pictures()}
    expected, _ = Bleu(4).compute_score(references, captions, verbose=0)
    assert reported == pytest.approx(expected, abs=1e-4)
    assert 0 < reported[3] < 1
    run.module.generated.reset()


def test_validation_sees_every_image_once_with_its_first_caption(training: Make) -> None:
    run = training()
    batches = list(run.data.val_dataloader())
    words = [word for image in pictures() for word in tokenize(image.captions[0])]
    assert [i for batch in batches for i in batch.image_ids] == [i.image_id for i in pictures()]
    assert sum(len(batch.targets) for batch in batches) == len(words) + len(pictures())


def test_no_file_is_written_outside_the_run(
    training: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = training(trainer={"max_epochs": 1})
    run.fit()
    assert list(elsewhere.iterdir()) == []
    files = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    assert files == {"metrics.csv", str(LAST_CHECKPOINT), str(BEST_WEIGHTS)}


@pytest.mark.parametrize("views", ["mirrored", "original+sideways", "original+original", ""])
def test_views_that_cannot_be_are_refused(training: Make, views: str) -> None:
    with pytest.raises(ValueError, match="views="):
        training(trainer={"views": views})
