"""A trial of a search: reported after every epoch, and ended early when others did better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.runs import update_record
from showtell.search import Trial, place, rejoin


def trial_callbacks(
    search: Mapping[str, Any], run_folder: Path, *, monitor: str
) -> list[PruneTrial]:
    """What a run needs that is a trial of a search, as the ``search`` of its configuration says.

    Nothing for a run that goes on after its trial has ended.
    """
    if search.get("trial") is None:
        return []
    trial = rejoin(*place(search, run_folder.parent))
    return [] if trial is None else [PruneTrial(run_folder, trial, monitor=monitor)]


class PruneTrial(Callback):
    """Tells the search the score of every validation and stops the training when it says so.

    What a stopped training has learned is kept and scored as ever; ``run.json`` says why it is
    short.

    Args:
        run_folder: of the trial.
        trial: the search's side of it.
        monitor: the score that is searched for, as Lightning calls it.
    """

    def __init__(self, run_folder: Path, trial: Trial, *, monitor: str) -> None:
        self._run_folder = run_folder
        self._trial = trial
        self._monitor = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop where it is not worth going on."""
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[self._monitor])
        if self._trial.report(trainer.current_epoch, score):
            why = (
                f"after epoch {trainer.current_epoch + 1}, {self._monitor} {score:.4f} was below "
                "the median of the other trials"
            )
            update_record(self._run_folder, pruned=why)
            print(f"stopped early: {why}")
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the trial."""
        self._trial.finish()
