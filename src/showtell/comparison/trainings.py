"""Run folders, or folders of them, read for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showtell import runs
from showtell.comparison.settings import key_of, settings_of
from showtell.errors import UserError
from showtell.metrics.statistics import CaptionStatistics
from showtell.report.curves import METRICS_FILE, read_curves
from showtell.types import Split


@dataclass(frozen=True, eq=False)
class Training:
    """One run: how it came about, and what its scores are computed from.

    ``best_epoch`` is that of its weights, from 1; None where there are no curves.
    """

    folder: Path
    record: Mapping[str, Any]
    settings: Mapping[str, str]
    statistics: CaptionStatistics
    best_epoch: int | None

    @property
    def seconds(self) -> float | None:
        """Time spent in training and validation; None where nobody measured it."""
        seconds = self.record.get("training_seconds")
        return float(seconds) if isinstance(seconds, int | float) else None


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Each run folder once, and a note for each that did not finish."""
    found: dict[Path, Path] = {}
    notes = []
    for path in paths:
        alone = (path / runs.RECORD).is_file()
        inside = [path] if alone else sorted(file.parent for file in path.glob(f"*/{runs.RECORD}"))
        if not inside:
            raise UserError(
                f"{path} holds no run: it has no {runs.RECORD}, and no folder in it has; give what "
                "`python train.py` printed after `run:`, or the folder of a sweep"
            )
        for folder in inside:
            status = runs.read_record(folder).get("status")
            if status != "finished":
                what = "counts with its best weights so far" if alone else "left out"
                notes.append(f"{folder.name} is {status}, not finished: {what}")
            if status == "finished" or alone:
                found.setdefault(folder.resolve(), folder)
    if not found:
        raise UserError(f"no run in {', '.join(map(str, paths))} is finished: {'; '.join(notes)}")
    return list(found.values()), notes


def read_training(folder: Path, split: Split) -> Training:
    """The run in ``folder`` as ``showtell evaluate`` left it.

    Raises:
        UserError: it was not evaluated on the split, or one of its files is damaged.
    """
    record = runs.read_record(folder, needs=["data", "encoder", "text"])
    config = runs.read_config(folder)
    best = read_curves(folder / METRICS_FILE).best(config.get("callbacks", {}).get("monitor"))
    return Training(
        folder=folder,
        record=record,
        settings=settings_of(config, record),
        statistics=runs.load_statistics(folder, split),
        best_epoch=best.epoch if best else None,
    )


def without_repeats(trainings: Sequence[Training]) -> tuple[list[Training], list[str]]:
    """One training of each configuration and seed: a copy would pass for agreement of seeds."""
    first: dict[object, Training] = {}
    notes = []
    for training in trainings:
        key = (key_of(training.settings), training.record.get("seed"))
        kept = first.setdefault(key, training)
        if kept is not training:
            notes.append(
                f"{training.folder.name} has the configuration and the seed of "
                f"{kept.folder.name}: left out"
            )
    return list(first.values()), notes


def check_comparable(trainings: Sequence[Training], split: Split) -> None:
    """Refuse runs that were not given the same task.

    Raises:
        UserError: two were scored on different images or against different references.
    """
    first = trainings[0]
    for training in trainings[1:]:
        if not training.statistics.is_comparable(first.statistics):
            raise UserError(
                f"{training.folder} and {first.folder} were scored on different {split} images or "
                "references: run `showtell evaluate` on both with the same data set"
            )
