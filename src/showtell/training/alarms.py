"""Collapse alarms during training: each kind is printed once and recorded in ``run.json``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from showtell.metrics.alarms import Alarm, caption_alarms, leak_alarms
from showtell.metrics.floors import shuffled_cider
from showtell.metrics.language import WordStatistics, caption_words, reference_words
from showtell.runs import TRAINING, alarms_of, read_record, write_alarms
from showtell.training.module import CaptioningModule


class CollapseAlarms(Callback):
    """Checks the captions of every validation for signs of collapse.

    An alarm is raised only when two validations in a row show the same sign: after the first epoch
    a healthy model may still write one sentence for all images.

    Args:
        run_folder: the run whose ``run.json`` records the alarms.
        references: image id -> references of the validation images.
        max_length: the longest caption in words that the search allows.
        trained_on_validation: whether the model is trained on the validation images; leaks then
            raise no alarm.
    """

    def __init__(
        self,
        run_folder: Path,
        references: Mapping[str, Sequence[str]],
        *,
        max_length: int,
        trained_on_validation: bool,
    ) -> None:
        self._run_folder = run_folder
        self._references = references
        self._max_length = max_length
        self._trained_on_validation = trained_on_validation
        self._before: set[str] = set()  # kinds of alarm found at the previous validation
        self._people: WordStatistics | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise, on rank zero, the alarms that the previous validation showed too."""
        if trainer.sanity_checking:
            return
        generated = cast(CaptioningModule, pl_module).generated
        cider = trainer.callback_metrics.get("val/CIDEr")
        found = self.judge(
            generated.captions(), generated.unfinished(), None if cider is None else float(cider)
        )
        lasting = [alarm for alarm in found if alarm.name in self._before]
        self._before = {alarm.name for alarm in found}
        if trainer.is_global_zero:
            raise_alarms(self._run_folder, lasting, when=f"after epoch {trainer.current_epoch + 1}")

    def state_dict(self) -> dict[str, Any]:
        """The kinds of alarm found at the last validation."""
        return {"before": sorted(self._before)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the kinds of alarm found at the last validation."""
        self._before = set(state_dict["before"])

    def judge(
        self, captions: Mapping[str, str], unfinished: Collection[str], cider: float | None
    ) -> list[Alarm]:
        """The alarms for the captions of one validation.

        ``unfinished`` has the ids of the images whose captions were cut off.
        """
        references = {image_id: self._references[image_id] for image_id in captions}
        written = caption_words(captions, references, unfinished=unfinished)
        if self._people is None:  # the same images at every validation
            self._people = reference_words(references)
        alarms = caption_alarms(
            written,
            self._people,
            max_length=self._max_length,
            cider=cider,
            shuffled_cider=shuffled_cider(captions, references),
        )
        leaks = leak_alarms(written, self._people, scores={}, ceiling={})
        return [*alarms, *(() if self._trained_on_validation else leaks)]


def raise_alarms(run_folder: Path, alarms: Iterable[Alarm], *, when: str) -> None:
    """Print and record the alarms of kinds that this run has not raised during training yet."""
    known = alarms_of(read_record(run_folder)).get(TRAINING, [])
    kinds = {alarm.name for alarm in known}
    new = [
        replace(alarm, finding=f"{when}, {alarm.finding}")
        for alarm in alarms
        if alarm.name not in kinds
    ]
    if new:
        write_alarms(run_folder, TRAINING, [*known, *new])
    for alarm in new:
        print(f"warning: {alarm}")
