"""A table of the model's captions of the same few validation images after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.data.records import evenly_spaced
from showtell.tracking import EPOCH_CAPTIONS, CaptionRow, Tracker
from showtell.training.module import CaptioningModule
from showtell.types import CaptionedImage

# Enough to see progress; the table of one epoch takes some 150 kB.
IMAGES_PER_EPOCH = 16


class EpochExamples(Callback):
    """Hands the tracker a table of captions after every validation.

    Args:
        tracker: where the tables go.
        images: the validation images; the same evenly spaced ones are shown every time.
    """

    def __init__(self, tracker: Tracker, images: Sequence[CaptionedImage]) -> None:
        self._tracker = tracker
        self._shown = evenly_spaced(images, IMAGES_PER_EPOCH)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the captions of the last validation, on rank zero."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        captions = cast(CaptioningModule, pl_module).generated.captions()
        rows = [
            CaptionRow(image.path, captions[image.image_id], image.captions, scores={})
            for image in self._shown
            if image.image_id in captions
        ]
        self._tracker.log_captions(
            EPOCH_CAPTIONS, rows, step=trainer.global_step - 1, epoch=trainer.current_epoch
        )
