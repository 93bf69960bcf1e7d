"""Rows of a comparison: one for each configuration, over its seeds, with significance tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean, stdev

from showtell.comparison.settings import key_of, names_of
from showtell.comparison.trainings import Training
from showtell.metrics.intervals import Comparison, compare_each
from showtell.metrics.statistics import SCORE_NAMES


@dataclass(frozen=True, eq=False)
class Row:
    """A configuration: the overrides that distinguish it, its trainings and its scores.

    ``means`` are over its trainings, of the scores that all of them have; ``spreads`` are their
    sample standard deviations, empty for a single training. ``comparisons`` are tests against the
    first row.
    """

    name: tuple[str, ...]
    trainings: Sequence[Training]
    means: Mapping[str, float]
    spreads: Mapping[str, float]
    comparisons: Mapping[str, Comparison]

    @property
    def minutes(self) -> float | None:
        """Mean training time in minutes; None unless it is known for every training."""
        seconds = _mean([training.seconds for training in self.trainings])
        return None if seconds is None else seconds / 60

    @property
    def best_epoch(self) -> float | None:
        """Mean 1-based epoch of the best weights; None unless it is known for every training."""
        return _mean([t.best.epoch if t.best else None for t in self.trainings])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def rows_of(trainings: Sequence[Training]) -> list[Row]:
    """One row for each configuration, in the order of first trainings; the first is the baseline.

    Trainings that were not evaluated take no part in the tests.
    """
    groups = _grouped(trainings)
    names = names_of([group[0].settings for group in groups])
    return [_row(*each) for each in zip(names, groups, _tests(groups), strict=True)]


def best_first(trainings: Sequence[Training], metric: str) -> list[Training]:
    """Sort trainings by the mean of their configuration, then by their own score, best first."""

    def worse(each: Sequence[Training]) -> float:
        mean = _mean([training.scores.get(metric) for training in each])
        return inf if mean is None else -mean

    groups = sorted(_grouped(trainings), key=worse)
    return [training for group in groups for training in sorted(group, key=lambda t: worse([t]))]


def _grouped(trainings: Sequence[Training]) -> list[list[Training]]:
    groups: dict[object, list[Training]] = {}
    for training in trainings:
        groups.setdefault(key_of(training.settings), []).append(training)
    return list(groups.values())


def _tests(groups: Sequence[Sequence[Training]]) -> list[dict[str, Comparison]]:
    """The tests of each group against the first; empty for the first itself."""
    statistics = [[t.statistics for t in group if t.statistics is not None] for group in groups]
    tested = [number for number in range(1, len(groups)) if statistics[0] and statistics[number]]
    tests: list[dict[str, Comparison]] = [{} for _ in groups]
    if tested:
        found = compare_each(statistics[0], [statistics[number] for number in tested])
        for number, test in zip(tested, found, strict=True):
            tests[number] = test
    return tests


def _row(
    name: tuple[str, ...], trainings: Sequence[Training], comparisons: Mapping[str, Comparison]
) -> Row:
    each = [training.scores for training in trainings]
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
