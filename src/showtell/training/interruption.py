"""Saves the training state when a signal asks the process to end, for an exact resume."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.training.ranks import largest

# Sent by submitit, SLURM and `kill` to a process that should end soon. If several came, they are
# handled in this order, because the handler of the first may requeue the job before it ends.
SIGNALS = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)


class SaveWhenAsked(Callback):
    """Saves the resumable state when a signal comes, then calls the signal's previous handler.

    In ``train.py`` that handler exits with status 128 + signal number; submitit's requeues the job.
    A signal during a training step is handled at the end of the step. A signal during validation
    is handled at once and saves nothing: the state before the last step of each epoch is already
    saved, and repeating that step costs less than saving a half-done validation.

    Args:
        path: the file of the resumable state.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._asked = 0  # bit mask of the signals that came, one bit for each of SIGNALS
        self._can_end = False  # whether everything worth keeping is on disk

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has set by now; it restores the original ones."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when asked to end, and before the last step of the epoch."""
        heard = largest(self._asked)  # a signal reaches the processes in different steps
        self._asked |= heard  # another may have come during the exchange
        is_next_last = batch_idx + 2 == trainer.num_training_batches
        if (self._asked or is_next_last) and not trainer.is_last_batch:
            trainer.save_checkpoint(self._path, weights_only=False)
        self._handle_pending_signal()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on handle a signal at once."""
        self._can_end = True
        self._handle_pending_signal()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the next step or of the training."""
        self._can_end = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Handle a signal although saving failed because another process is gone."""
        self._handle_pending_signal()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Handle a signal that came after the last step; the last epoch is saved."""
        self._handle_pending_signal()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked |= 1 << SIGNALS.index(signal.Signals(number))
        if self._can_end:
            self._handle_pending_signal()

    def _handle_pending_signal(self) -> None:
        asked, self._asked = self._asked, 0
        for bit, number in enumerate(SIGNALS):
            if not asked & 1 << bit:
                continue
            before = self._handlers[number]
            if not callable(before):
                sys.exit(128 + number)
            before(number, None)  # usually does not return
