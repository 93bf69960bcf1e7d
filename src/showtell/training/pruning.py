"""A trial of a search: reported after every epoch, and ended early when others did better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.runs import read_record, update_record
from showtell.search import Trial, place, rejoin


def trial_callbacks(
    search: Mapping[str, Any], run_folder: Path, *, monitor: str
) -> list[PruneTrial]:
    """What a run needs that is a trial of a search, as the ``search`` of its configuration says."""
    if search.get("trial") is None:
        return []
    trial = rejoin(*place(search, run_folder.parent))
    return [PruneTrial(run_folder, trial, monitor=monitor)]


class PruneTrial(Callback):
    """Tells the search the score of every validation and stops the training when it says so.

    What a stopped training has learned is kept and scored as ever; ``run.json`` says why it is
    short. One that fails is told as failed; one that is interrupted goes on later.

    Args:
        run_folder: of the trial.
        trial: the search's side of it; None when it is over, for a run that goes on after that.
        monitor: the score that is searched for, as Lightning calls it.
    """

    def __init__(self, run_folder: Path, trial: Trial | None, *, monitor: str) -> None:
        self._run_folder = run_folder
        self._trial = trial
        self._monitor = monitor
        self._is_pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Whether the trial was stopped."""
        return {"is_pruned": self._is_pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know it again, also when the process was killed before it told so."""
        self._is_pruned = state_dict["is_pruned"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop where it is not worth going on."""
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
        elif "pruned" in read_record(self._run_folder):  # by a process that was killed just then
            update_record(self._run_folder, pruned=None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the trial."""
        if self._trial is not None:
            self._trial.finish(pruned=self._is_pruned)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the trial as failed, unless somebody wants it to go on."""
        if self._trial is not None and not isinstance(exception, KeyboardInterrupt | SystemExit):
            self._trial.fail()
