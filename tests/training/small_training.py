"""A training small enough for a test: eight made-up images, a decoder of a few thousand weights.

As a program (``python small_training.py FOLDER``) it starts or resumes one, to be killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from showtell.data.datamodule import CaptionDataModule
from showtell.decoding.beam import BeamSearch
from showtell.models.lstm import LSTMDecoder
from showtell.runs import LAST_CHECKPOINT
from showtell.text.settings import TextSettings
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import Vocabulary
from showtell.tracking import CsvCurves
from showtell.training import ranks
from showtell.training.callbacks import CallbackSettings
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.module import CaptioningModule
from showtell.training.objectives import CrossEntropy, SelfCritical
from showtell.training.optimization import Optimization
from showtell.training.trainer import TrainerSettings
from showtell.training.validation import GeneratedCaptions
from showtell.types import CaptionedImage

THINGS = ("dog", "cat", "ball", "boat", "tree", "car", "bird", "girl")
FEATURES = 12


def pictures() -> tuple[CaptionedImage, ...]:
    """Two captions each; what is to be told is in the features alone."""
    return tuple(
        CaptionedImage(
            f"{thing}.jpg",
            Path(f"{thing}.jpg"),
            (f"a {thing} is seen near the old house", f"there is a {thing} in the picture"),
            "train",
        )
        for thing in THINGS
    )


class MadeUpFeatures:
    """A random vector for each image."""

    def index(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([THINGS.index(i.removesuffix(".jpg")) for i in image_ids])

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        table = np.random.default_rng(0).standard_normal((len(THINGS), FEATURES))
        return table[positions].astype(np.float16)


@dataclass
class Training:
    """One training in one folder, as the experiment puts it together."""

    folder: Path
    module: CaptioningModule
    data: CaptionDataModule
    trainer: Trainer
    curves: CsvCurves

    def fit(self, checkpoint: Path | None = None) -> None:
        self.trainer.fit(self.module, self.data, ckpt_path=checkpoint, weights_only=True)


def build_training(
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    objective: CrossEntropy | SelfCritical | None = None,
    optimization: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    dropout: float = 0.2,
    patience: int | None = None,
    every_steps: int | None = 1,
) -> Training:
    objective = objective or CrossEntropy(label_smoothing=0.1, scheduled_sampling=0.0)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    seed_everything(7, workers=True, verbose=False)
    images = pictures()
    tokenized = [tokenize(c) for image in images for c in image.captions]
    vocabulary = Vocabulary.from_captions(tokenized, min_count=1)
    decoder = LSTMDecoder(
        vocabulary_size=len(vocabulary),
        feature_size=FEATURES,
        vector_width=8,
        embedding_width=None,
        hidden_size=24,
        dense_size=24,
        image_dropout=0.0,
        word_dropout=dropout,
        output_dropout=dropout,
    )
    search = BeamSearch(
        beam_size=2, min_length=1, max_length=12, length_penalty=0.0, allow_unknown=False
    )
    references = {image.image_id: image.captions for image in images}
    settings = {
        "lr": 1e-2,
        "encoder_lr": None,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "final_lr_fraction": 0.1,
        "gradient_clip": 1.0,
        "averaging": 0.0,
    }
    rules = Optimization(**{**settings, **(optimization or {})})
    limits = {
        "batch_size": 2,
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": ranks.world_size(),
        "num_nodes": 1,
        "precision": "32-true",
        "limit_images": None,
        "limit_batches": None,
        "views": "original",
        "validate_on_train": False,
        "profiler": None,
    }
    run = TrainerSettings(**{**limits, **(trainer or {})})
    data = CaptionDataModule(
        {"train": images, "val": images},
        MadeUpFeatures(),
        vocabulary,
        batch_size=run.batch_size,
        seed=7,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )
    module = CaptioningModule(
        decoder,
        search,
        GeneratedCaptions(references, vocabulary, max_length=12, metrics=["BLEU"]),
        objective=objective.on(images, vocabulary, list),
        optimization=rules,
        text=TextSettings(1, None, 8, "thaw", 1),
        steps_per_epoch=len(data.train_batches),
        max_epochs=run.max_epochs,
    )
    every = CallbackSettings("val/BLEU-4", patience, every_steps, 0).build(folder)
    curves = CsvCurves(folder / "metrics.csv")
    lightning_trainer = run.build(
        folder, callbacks=[*callbacks, *every], loggers=[curves], gradient_clip=rules.gradient_clip
    )
    return Training(folder, module, data, lightning_trainer, curves)


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training.module.decoder.state_dict().items()}


class Announce(Callback):
    """Says when the first step begins, and takes its time, so that a kill can hit any moment."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        print("training", flush=True)

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.02)


def start_or_resume(folder: Path) -> None:
    run = build_training(folder, callbacks=[Announce()], trainer={"max_epochs": 8})
    checkpoint = folder / LAST_CHECKPOINT
    if not checkpoint.is_file():
        run.fit()
        return
    run.curves.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    run.fit(checkpoint)


if __name__ == "__main__":
    start_or_resume(Path(sys.argv[1]))
