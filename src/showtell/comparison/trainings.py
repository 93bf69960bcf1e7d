"""Reads run folders, or folders of them, for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from showtell import runs
from showtell.comparison.jobs import Job, is_sweep, read_jobs
from showtell.comparison.settings import key_of, settings_of
from showtell.errors import UserError
from showtell.metrics.statistics import SCORE_NAMES, CaptionStatistics
from showtell.report.curves import METRICS_FILE, Best, Curves, read_curves
from showtell.types import Split


@dataclass(frozen=True, eq=False)
class Training:
    """One run: its origin and its scores.

    ``statistics`` are what its scores are computed from; None if it was not evaluated. Then the
    scores are those of its best validation, from ``metrics.csv``.
    """

    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    settings: Mapping[str, str]
    curves: Curves
    statistics: CaptionStatistics | None

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Score name -> score of the whole split."""
        if self.statistics is not None:
            return self.statistics.scores
        logged = self.curves.at_best(self.monitor)
        return {n: logged[f"val/{n}"] for n in SCORE_NAMES if f"val/{n}" in logged}

    @property
    def monitor(self) -> str | None:
        """The metric that selected its weights, such as ``val/BLEU-4``."""
        callbacks = self.config.get("callbacks")
        name = callbacks.get("monitor") if isinstance(callbacks, Mapping) else None
        return None if name is None else str(name)

    @property
    def best(self) -> Best | None:
        """The validation that selected its weights; None without curves."""
        return self.curves.best(self.monitor)

    @property
    def seconds(self) -> float | None:
        """Time spent in training and validation; None if it was not measured."""
        seconds = self.record.get("training_seconds")
        return float(seconds) if isinstance(seconds, int | float) else None


@dataclass(frozen=True, eq=False)
class Collection:
    """The content of some folders: comparable runs, jobs of sweeps, and notes."""

    trainings: Sequence[Training]
    jobs: Sequence[Job]
    notes: Sequence[str]


def collect(paths: Sequence[Path], split: Split) -> Collection:
    """Read each run once, in the order of ``paths``; from a folder of runs the finished ones.

    A run that cannot be used is an error if its own folder is given, and a job with status
    "unreadable" if the folder around it is.

    Raises:
        UserError: a path holds no run, or the run in it has no scores on the split or is damaged.
    """
    found: dict[Path, Training] = {}
    jobs: list[Job] = []
    notes: list[str] = []
    for path in paths:
        if (path / runs.RECORD).is_file():
            found.setdefault(path.resolve(), read_training(path, split))
            notes += _on_an_unfinished(path)
            continue
        if not is_sweep(path):
            raise UserError(
                f"{path} holds no run: it has no {runs.RECORD}, and no folder in it has; give what "
                "`python train.py` printed after `run:`, or the folder of a sweep"
            )
        jobs += [_used(job, split, found) for job in read_jobs(path)]
    trainings, repeats = without_repeats(list(found.values()))
    return Collection(trainings, jobs, [*notes, *repeats, *_on_unscored(trainings)])


def _used(job: Job, split: Split, found: dict[Path, Training]) -> Job:
    """Add the run of a finished job to ``found``; return the job, "unreadable" if that fails."""
    if not job.finished or job.folder is None:
        return job
    try:
        if (place := job.folder.resolve()) not in found:
            found[place] = read_training(job.folder, split)
    except UserError as error:
        return job.unreadable(str(error))
    return job


def read_training(folder: Path, split: Split) -> Training:
    """Read the run in ``folder``, with the scores of ``showtell evaluate`` or of its training.

    Raises:
        UserError: one of its files is damaged, or it has no scores on the split.
    """
    record = runs.read_record(folder, needs=["data", "encoder", "text"])
    config = runs.read_config(folder)
    curves = read_curves(folder / METRICS_FILE)
    # Learning curves have scores of the validation split only.
    evaluated = split != "val" or runs.has_statistics(folder, split)
    training = Training(
        folder=folder,
        record=record,
        config=config,
        settings=settings_of(config, record),
        curves=curves,
        statistics=runs.load_statistics(folder, split) if evaluated else None,
    )
    if not training.scores:
        runs.load_statistics(folder, split)  # raises, saying what is missing and the remedy
    return training


def _on_an_unfinished(folder: Path) -> list[str]:
    status = runs.read_record(folder).get("status")
    if status == "finished":
        return []
    return [f"{folder.name} is {status}, not finished: counts with its best weights so far"]


def _on_unscored(trainings: Sequence[Training]) -> list[str]:
    names = [training.folder.name for training in trainings if training.statistics is None]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [
        f"not evaluated: {', '.join(names[:3])}{more}; the scores are those of the best validation "
        "in metrics.csv, and have no part in tests and changes until `showtell evaluate` was run"
    ]


def without_repeats(trainings: Sequence[Training]) -> tuple[list[Training], list[str]]:
    """Keep one training per configuration and seed, as copies would look like agreeing seeds."""
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
    """Refuse runs whose scores cannot be compared.

    Raises:
        UserError: two were scored on different images or against different references.
    """
    evaluated = [(t.folder, t.statistics) for t in trainings if t.statistics is not None]
    for folder, statistics in evaluated[1:]:
        first_folder, first = evaluated[0]
        if not statistics.is_comparable(first):
            raise UserError(
                f"{folder} and {first_folder} were scored on different {split} images or "
                "references: run `showtell evaluate` on both with the same data set"
            )
