"""Training callbacks: best weights, checkpoints, early stopping and progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar

from showtell.runs import LAST_CHECKPOINT, save_weights
from showtell.training.checkpoints import RandomStates
from showtell.training.interruption import SaveWhenAsked
from showtell.training.module import CaptioningModule

# Scores that validation reports after every epoch; higher is better.
Monitor = Literal["val/BLEU-1", "val/BLEU-2", "val/BLEU-3", "val/BLEU-4", "val/CIDEr"]
# Scores shown in the line that is printed after each epoch.
SHOWN = ("BLEU-4", "CIDEr")


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """The ``callbacks`` group of the configuration.

    Attributes:
        monitor: the score of freely generated validation captions that selects the best weights.
        patience: validations without a better score after which training stops; None: never.
        checkpoint_every_steps: steps between saves of the resumable state, in addition to the save
            after every epoch; None: after epochs only.
        progress_refresh: batches between two updates of the progress bar; 0 shows no bar.
    """

    monitor: Monitor
    patience: int | None
    checkpoint_every_steps: int | None
    progress_refresh: int

    def __post_init__(self) -> None:
        for name, least in (
            ("patience", 1),
            ("checkpoint_every_steps", 1),
            ("progress_refresh", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    def build(self, run_folder: Path) -> list[Callback]:
        """The callbacks of a run that lives in ``run_folder``."""
        keep_best = KeepBest(run_folder, monitor=self.monitor)
        callbacks: list[Callback] = [keep_best, RandomStates(), RestoreEarlyStop(self.patience)]
        if self.patience is not None:
            callbacks.append(Patience(self.monitor, mode="max", patience=self.patience))
        if self.progress_refresh:
            callbacks.append(EpochProgress(keep_best, refresh_rate=self.progress_refresh))
        # Last: what they save includes what the callbacks before them decided.
        callbacks += [*self._checkpoints(run_folder), SaveWhenAsked(run_folder / LAST_CHECKPOINT)]
        return callbacks

    def _checkpoints(self, run_folder: Path) -> list[Callback]:
        last = LAST_CHECKPOINT.stem
        folder = run_folder / LAST_CHECKPOINT.parent
        common: dict[str, Any] = {"dirpath": folder, "filename": last, "save_top_k": 1}
        common |= {"enable_version_counter": False, "auto_insert_metric_name": False}
        each_epoch = ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **common)
        if self.checkpoint_every_steps is None:
            return [each_epoch]
        each_steps = StepCheckpoint(every_n_train_steps=self.checkpoint_every_steps, **common)
        return [each_steps, each_epoch]


class StepCheckpoint(ModelCheckpoint):
    """Saves between the steps of an epoch, but not after its last one.

    From a checkpoint of the last step Lightning would resume in the next epoch and skip the
    validation still due; the checkpoint of the whole epoch follows soon anyway.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save if a save is due, except after the last step of the epoch."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)


class Patience(EarlyStopping):
    """Early stopping that uses the configured patience, not the one in a resumed checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the wait count, but not the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class RestoreEarlyStop(Callback):
    """Stops a resumed training at once if it had already stopped early under the same limits.

    Its run may have been killed during the evaluation that follows. The limits are ``max_epochs``
    and ``patience``.

    Args:
        patience: the configured patience.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._ended_under: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the limits under which a callback has stopped the training; None if none has."""
        checkpoint["ended_under"] = self._limits(trainer) if trainer.should_stop else None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the recorded limits, which checkpoints of earlier versions lack."""
        self._ended_under = checkpoint.get("ended_under")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the training again if the limits have not changed."""
        if self._ended_under == self._limits(trainer):
            trainer.should_stop = True

    def _limits(self, trainer: Trainer) -> dict[str, Any]:
        return {"max_epochs": trainer.max_epochs, "patience": self._patience}


class KeepBest(Callback):
    """Saves the weights, ready to share, whenever validation reaches a new best score."""

    def __init__(self, run_folder: Path, *, monitor: str) -> None:
        self.monitor = monitor
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._run_folder = run_folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights, on rank zero, if the score is a new best."""
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if self.best is not None and score <= self.best:
            return
        self.best, self.best_epoch = score, trainer.current_epoch
        if trainer.is_global_zero:
            module = cast(CaptioningModule, pl_module)
            save_weights(self._run_folder, module.validated, module.validated_encoder)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far and its 0-based epoch."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its epoch."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class EpochProgress(RichProgressBar):
    """Lightning's progress bar with epochs counted from 1, and a lasting line for every epoch."""

    def __init__(self, keep_best: KeepBest, *, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._keep_best = keep_best

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line: losses in nats per token, or rewards, and scores times 100."""
        super().on_train_epoch_end(trainer, pl_module)
        module = cast(CaptioningModule, pl_module)
        train_mean = module.train_mean.compute()
        val = {name: float(value) for name, value in trainer.callback_metrics.items()}
        scores = [
            f"{name} {100 * val[f'val/{name}']:.1f}" for name in SHOWN if f"val/{name}" in val
        ]
        is_best = self._keep_best.best_epoch == trainer.current_epoch
        trainer.print(
            self._get_train_description(trainer.current_epoch),
            f"train {module.objective.measure} {train_mean:.3f}",
            f"val loss {val['val/loss']:.3f}",
            *scores,
            *(["best"] if is_best else []),
            sep="  ",
        )

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = str(self.trainer.max_epochs)
        return f"epoch {current_epoch + 1:>{len(epochs)}}/{epochs}"
