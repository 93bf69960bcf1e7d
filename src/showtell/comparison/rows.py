"""Rows of a comparison: one for each configuration, over its seeds, with the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from showtell.comparison.settings import key_of, names_of
from showtell.comparison.trainings import Training
from showtell.metrics.intervals import Comparison, compare
from showtell.metrics.statistics import SCORE_NAMES, CaptionStatistics


@dataclass(frozen=True, eq=False)
class Row:
    """A configuration: the overrides that tell it from others, its trainings, the test.

    ``means`` over its trainings are of the scores that all of them have, ``spreads`` their sample
    standard deviations, none of a single training. ``comparisons`` are with the first row.
    """

    name: tuple[str, ...]
    trainings: Sequence[Training]
    means: Mapping[str, float]
    spreads: Mapping[str, float]
    comparisons: Mapping[str, Comparison]

    @property
    def minutes(self) -> float | None:
        """Mean time of a training; None where it is not known of each."""
        seconds = _mean([training.seconds for training in self.trainings])
        return None if seconds is None else seconds / 60

    @property
    def best_epoch(self) -> float | None:
        """Mean epoch of the best weights; None where it is not known of each."""
        return _mean([training.best_epoch for training in self.trainings])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def rows_of(trainings: Sequence[Training]) -> list[Row]:
    """One row for each configuration, in the order of its first training; the first is the base."""
    groups: dict[object, list[Training]] = {}
    for training in trainings:
        groups.setdefault(key_of(training.settings), []).append(training)
    names = names_of([group[0].settings for group in groups.values()])
    baseline, *others = groups.values()
    tests = [{}, *(compare(_statistics(baseline), _statistics(other)) for other in others)]
    return [_row(*each) for each in zip(names, groups.values(), tests, strict=True)]


def _row(
    name: tuple[str, ...], trainings: Sequence[Training], comparisons: Mapping[str, Comparison]
) -> Row:
    each = [statistics.scores for statistics in _statistics(trainings)]
    scores = {
        metric: [one[metric] for one in each]
        for metric in SCORE_NAMES
        if all(metric in one for one in each)
    }
    return Row(
        name=name,
        trainings=trainings,
        means={metric: fmean(values) for metric, values in scores.items()},
        spreads={metric: stdev(values) for metric, values in scores.items() if len(values) > 1},
        comparisons=comparisons,
    )


def _statistics(trainings: Sequence[Training]) -> list[CaptionStatistics]:
    return [training.statistics for training in trainings]
