"""The Lightning Trainer of a run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from showtell.errors import UserError
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.vision.images import view_names

# Warnings that do not apply: features are read without workers, a resumed run finds its own
# checkpoints wherever it was moved to, the module writes the learning curves itself, PyTorch
# deprecates what Lightning calls, scores are the same in every process before they are logged, and
# the encoder's normalization layers stay in eval mode on purpose.
HINTS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory.*exists.*",
    ".*The dirpath has changed.*",
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`broadcast_buffers` is deprecated.*",
    ".*sync_dist=True.*",
    ".*module.s. in eval mode.*",
)
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """The ``trainer`` group of the configuration.

    Attributes:
        batch_size: images per step over all processes, each with all its captions.
        max_epochs: largest number of epochs; the learning-rate schedule ends there.
        accelerator: ``auto``, or one that must be available.
        devices: processes on each machine, each with a device of its own.
        num_nodes: machines.
        precision: ``auto`` computes in bfloat16 where a GPU has it and in float32 elsewhere, or
            one of Lightning's names.
        limit_images: use only this many images of each split, the first ones; None for all.
        limit_batches: use only this many batches of each epoch, the first ones; None for all.
        views: augmentations of training images, names of ``VIEWS`` joined by ``+``; in each epoch
            one of them is drawn for each image.
        validate_on_train: validate on the training images instead of the validation split, to see
            whether a model can overfit.
        profiler: None, or a profiler of Lightning, which writes its report into the run folder.
    """

    batch_size: int
    max_epochs: int
    accelerator: Accelerator
    devices: int
    num_nodes: int
    precision: Precision
    limit_images: int | None
    limit_batches: int | None
    views: str
    validate_on_train: bool
    profiler: Literal["simple", "advanced"] | None

    def __post_init__(self) -> None:
        for name in (
            *("batch_size", "max_epochs", "devices", "num_nodes"),
            *("limit_images", "limit_batches"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        view_names(self.views)

    @property
    def processes(self) -> int:
        """The number of processes that train together."""
        return self.devices * self.num_nodes

    @property
    def uses_gpu(self) -> bool:
        """Whether the training computes on NVIDIA's or AMD's GPUs."""
        return self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()

    def check_precision(self) -> None:
        """Refuse, before any work, a precision that this machine cannot train in.

        Raises:
            UserError: for 16-mixed on a CPU, where the fused optimizer would unscale gradients
                after they were clipped.
        """
        if self.precision == "16-mixed" and not self.uses_gpu:
            raise UserError(
                "trainer.precision=16-mixed needs a GPU; on a CPU take bf16-mixed, or 32-true"
            )

    def build(
        self,
        run_folder: Path,
        *,
        callbacks: Sequence[Callback],
        loggers: Sequence[Logger],
        gradient_clip: float | None,
    ) -> Trainer:
        """A trainer that writes only below ``run_folder``.

        Raises:
            UserError: this machine lacks the accelerator, or the accelerator the precision.
        """
        silence_hints()
        # In deterministic mode PyTorch fills new memory with NaN, which takes 1% of a step; nothing
        # here reads memory that it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            return self._trainer(run_folder, callbacks, loggers, gradient_clip)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(
                f"trainer.accelerator={self.accelerator}, precision="
                f"{self.precision}: {' '.join(str(error).split())}"
            ) from error

    def _trainer(
        self,
        run_folder: Path,
        callbacks: Sequence[Callback],
        loggers: Sequence[Logger],
        gradient_clip: float | None,
    ) -> Trainer:
        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self._strategy(),
            precision=self._precision(),
            max_epochs=self.max_epochs,
            gradient_clip_val=gradient_clip,
            callbacks=list(callbacks),
            logger=list(loggers),
            plugins=[AtomicCheckpointIO()],
            profiler=self._profiler(run_folder),
            default_root_dir=run_folder,
            # A sanity check would decode with untrained weights, when decoding is slowest.
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            enable_checkpointing=True,
            deterministic="warn",
        )

    def _strategy(self) -> DDPStrategy | Literal["auto"]:
        if self.processes == 1:
            return "auto"
        # Frozen word vectors have no gradient. Buffers are the same in all processes, and in
        # validation the processes make different numbers of forward passes.
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)

    def _profiler(self, run_folder: Path) -> Profiler | None:
        """The profiler, writing ``fit-profile.txt``: its table is too large for a terminal."""
        if self.profiler is None:
            return None
        if self.profiler == "simple":
            return SimpleProfiler(dirpath=run_folder, filename="profile")
        return AdvancedProfiler(dirpath=run_folder, filename="profile")

    def _precision(self) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
        if self.precision != "auto":
            return self.precision
        # Older GPUs emulate bfloat16, which is slower than float32.
        has_bf16 = self.uses_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if has_bf16 else "32-true"


def silence_hints() -> None:
    """Silence warnings that a user neither causes nor can fix; other warnings stay."""
    for module in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"lightning.pytorch.{module}").setLevel(logging.WARNING)
    for message in HINTS:
        warnings.filterwarnings("ignore", message)
