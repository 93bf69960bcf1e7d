"""Pruning of trials: the search learns every epoch's score and may stop the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.runs import read_record, update_record
from showtell.search import Trial, resume_trial, study_and_slot


def trial_callbacks(
    search: Mapping[str, Any], run_folder: Path, *, monitor: str
) -> list[PruneTrial]:
    """Callbacks of a run that is a trial of a search, by the ``search`` group of its config."""
    if search.get("trial") is None:
        return []
    trial = resume_trial(*study_and_slot(search, run_folder.parent))
    return [PruneTrial(run_folder, trial, monitor=monitor)]


class PruneTrial(Callback):
    """Reports the score of every validation to the search and stops a trial that it prunes.

    A pruned training keeps its best weights and is evaluated as usual; ``run.json`` says why it is
    short. A failed training is reported as failed; an interrupted one can be resumed.

    Args:
        run_folder: the folder of the trial's run.
        trial: the trial in the search; None if it is finished and only its run goes on.
        monitor: the metric that the search optimizes, by its name in Lightning.
    """

    def __init__(self, run_folder: Path, trial: Trial | None, *, monitor: str) -> None:
        self._run_folder = run_folder
        self._trial = trial
        self._monitor = monitor
        self._is_pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Whether the trial was pruned."""
        return {"is_pruned": self._is_pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether it was pruned, in case the process was killed before reporting it."""
        self._is_pruned = state_dict["is_pruned"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the score, and stop the training if the search prunes the trial."""
        if trainer.sanity_checking or self._trial is None:
            return
        score = float(trainer.callback_metrics[self._monitor])
        self._is_pruned = self._trial.report(trainer.current_epoch, score)
        if self._is_pruned:
            why = (
                f"after epoch {trainer.current_epoch + 1}, {self._monitor} {score:.4f} was below "
                "the median of the other trials"
            )
            update_record(self._run_folder, pruned=why)
            print(f"stopped early: {why}")
            trainer.should_stop = True
        elif "pruned" in read_record(self._run_folder):  # of a process killed just then
            update_record(self._run_folder, pruned=None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the trial as complete or pruned."""
        if self._trial is not None:
            self._trial.finish(pruned=self._is_pruned)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report the trial as failed, unless it was interrupted and may be resumed."""
        if self._trial is not None and not isinstance(exception, KeyboardInterrupt | SystemExit):
            self._trial.fail()
