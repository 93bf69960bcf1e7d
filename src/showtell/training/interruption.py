"""Being asked to end: the state is saved, so that the training goes on exactly where it was."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.training.ranks import largest

# What submitit, SLURM and `kill` send to a process that they want to end soon; obeyed in this order
# where several came, for the first may queue the job again before it ends.
SIGNALS = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)


class SaveWhenAsked(Callback):
    """Saves the resumable state when a signal comes, and then does what the signal did before.

    That is to end with its status, in ``train.py``, or to queue the job again, under submitit. In a
    step the signal waits for the end of the step. In a validation nothing needs to be saved: the
    state before the last step of each epoch is, and to do that step again costs less than to save
    where a validation stands.

    Args:
        path: the file of the resumable state.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._asked = 0  # the signals that came, a bit for each of SIGNALS
        self._can_end = False  # whether the state on the disk is all there is to keep

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning, which has set handlers of its own by now, puts all back at the end."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when asked to end, and before the last step of the epoch."""
        heard = largest(self._asked)  # processes hear a signal in different steps
        self._asked |= heard  # one may have come while they asked each other
        is_next_last = batch_idx + 2 == trainer.num_training_batches
        if (self._asked or is_next_last) and not trainer.is_last_batch:
            trainer.save_checkpoint(self._path, weights_only=False)
        self._end_if_asked()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal is obeyed at once."""
        self._can_end = True
        self._end_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the next step or the end."""
        self._can_end = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End as asked where it could not be saved: the process it computes with is gone."""
        self._end_if_asked()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Obey a signal that came after the last step; the last epoch is saved."""
        self._end_if_asked()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._asked |= 1 << SIGNALS.index(signal.Signals(number))
        if self._can_end:
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        asked, self._asked = self._asked, 0
        for bit, number in enumerate(SIGNALS):
            if not asked & 1 << bit:
                continue
            before = self._handlers[number]
            if not callable(before):
                sys.exit(128 + number)
            before(number, None)  # as a rule it does not come back
