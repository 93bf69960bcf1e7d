"""The Lightning Trainer of a run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from showtell.training.checkpoints import AtomicCheckpointIO


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """The ``trainer`` group of the configuration.

    Attributes:
        batch_size: images per step; each brings all its captions.
        max_epochs: passes over the training images at most; the schedule ends there.
        accelerator: ``auto``, ``cpu``, ``gpu`` or another name Lightning knows.
        devices: how many of them, or ``auto``.
        precision: ``auto`` computes in bfloat16 where a GPU has it and in float32 elsewhere, or
            any precision name of Lightning.
        limit_images: only the first so many images of each split; None for all.
        limit_batches: only the first so many batches of each epoch; None for all.
        validate_on_train: score the training images instead of the validation split, to see
            whether a model can learn by heart.
        profiler: None, or ``simple`` or ``advanced`` as Lightning names them.
    """

    batch_size: int
    max_epochs: int
    accelerator: str
    devices: int | str
    precision: str
    limit_images: int | None
    limit_batches: int | None
    validate_on_train: bool
    profiler: str | None

    def build(
        self,
        run_folder: Path,
        *,
        callbacks: Sequence[Callback],
        loggers: Sequence[Logger],
        gradient_clip: float | None,
    ) -> Trainer:
        """A trainer that writes only below ``run_folder``."""
        _silence_hints()
        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            precision=self._precision(),  # type: ignore[arg-type]
            max_epochs=self.max_epochs,
            limit_train_batches=self.limit_batches,
            limit_val_batches=self.limit_batches,
            gradient_clip_val=gradient_clip,
            callbacks=list(callbacks),
            logger=list(loggers),
            plugins=[AtomicCheckpointIO()],
            profiler=self.profiler,
            default_root_dir=run_folder,
            # A sanity check would decode with untrained weights, which is the slowest they get.
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            enable_checkpointing=True,
            deterministic="warn",
        )

    def steps_per_epoch(self, batches: int) -> int:
        """Optimizer steps of an epoch of so many batches."""
        return batches if self.limit_batches is None else min(batches, self.limit_batches)

    def _precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        uses_gpu = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return "bf16-mixed" if uses_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _silence_hints() -> None:
    """Lightning's hints that do not apply here: loaders without workers, tips, and so on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*Checkpoint directory.*exists.*"):
        warnings.filterwarnings("ignore", message)
