"""Which of the swept choices matters: main effects by least squares, beside the spread of seeds.

The score of run i, which has the value v(i, c) of each choice c, is decomposed as

    y_i = m + sum over c of a_c[v(i, c)] + e_i

with the a_c that minimize the sum of e_i^2 (least squares on indicator variables; Searle 1971,
"Linear Models", chapter 4). The adjusted mean of a value, m + a_c[value] with a_c centred over the
runs, is the mean that all runs would have scored with that value, everything else unchanged. On a
full grid it is the plain mean of the runs with the value; where combinations are missing, the plain
mean would also contain the effects of the values it happens to be combined with.

The share of a choice is the variance that is no longer explained without it, (RSS without c - RSS)
/ SS. The yardstick is the spread of one configuration over its seeds.

Dimension key: N runs, P columns of the design matrix, L values of a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from showtell.comparison.choices import Choice
from showtell.comparison.rows import Row
from showtell.comparison.trainings import Training
from showtell.metrics.statistics import Array

METRICS = ("BLEU-4", "CIDEr")  # how well it is written, and how much of it is about the image
_SAMPLES, _SEED = 9999, 0
_NOTHING = 1e-12  # share of the sum of squares that is rounding error


@dataclass(frozen=True, eq=False)
class Level:
    """One value of a choice: the numbers of the runs that have it, and its adjusted mean.

    ``error`` is the standard error of the mean. Both are None if the effect is confounded with that
    of other choices; the error also if no degrees of freedom are left to estimate it.
    """

    value: str
    runs: tuple[int, ...]
    mean: float | None
    error: float | None


@dataclass(frozen=True, eq=False)
class Effect:
    """A choice: its values, its share of the variance, and the p-value of its F test.

    The share is None if the choice is confounded with others, as when a value was only ever tried
    together with one of another choice.
    """

    choice: str
    levels: tuple[Level, ...]
    share: float | None
    p_value: float | None

    @property
    def means(self) -> list[float]:
        """The adjusted means of its values; empty if the choice is confounded with others."""
        return [level.mean for level in self.levels if level.mean is not None]

    @property
    def reach(self) -> float | None:
        """The difference between its best and its worst adjusted mean; None without means."""
        return max(self.means) - min(self.means) if self.means else None


@dataclass(frozen=True, eq=False)
class Effects:
    """The effects of all choices on one metric.

    Attributes:
        runs: the runs that have the metric; ``scores`` are theirs, in the same order.
        explained: share of the variance that the sum of the main effects explains.
        interaction: share of the interactions between choices; None with one seed each.
        seed_variance: share within configurations, between their seeds; None with one seed each.
        spread: standard deviation between the seeds of a configuration, pooled over all. With one
            seed each, that of the residuals of the main effects, interactions and chance together;
            None if no degrees of freedom are left.
        seeds: whether the spread is that of seeds.
    """

    metric: str
    runs: tuple[Training, ...]
    scores: tuple[float, ...]
    effects: tuple[Effect, ...]
    explained: float
    interaction: float | None
    seed_variance: float | None
    spread: float | None
    seeds: bool

    @property
    def mean(self) -> float:
        """The mean score of all runs."""
        return fmean(self.scores)


def effects_among(rows: Sequence[Row], choices: Sequence[Choice]) -> list[Effects]:
    """The effects on BLEU-4 and CIDEr, each if at least two runs have it.

    ``choices`` have a value for each row. For both metrics the choices are sorted by their share of
    the first, largest first.
    """
    found = [each for metric in METRICS if (each := effects_on(metric, rows, choices))]
    if not found:
        return []
    shares = {effect.choice: effect.share or 0.0 for effect in found[0].effects}

    def rank(effect: Effect) -> float:
        return -shares.get(effect.choice, 0.0)

    return [replace(each, effects=tuple(sorted(each.effects, key=rank))) for each in found]


def effects_on(metric: str, rows: Sequence[Row], choices: Sequence[Choice]) -> Effects | None:
    """The effects on one metric; None if fewer than two runs have it."""
    runs = [(n, t) for n, row in enumerate(rows) for t in row.trainings if metric in t.scores]
    if len(runs) < 2:
        return None
    places = np.array([place for place, _ in runs])
    scores = np.array([training.scores[metric] for _, training in runs])
    varying = [choice for choice in choices if len({choice.values[place] for place in places}) > 1]
    fit = _Fit(scores, places, varying)
    return Effects(
        metric=metric,
        runs=tuple(training for _, training in runs),
        scores=tuple(scores.tolist()),
        effects=tuple(fit.effect(number) for number in range(len(varying))),
        explained=fit.share(fit.total - fit.rest),
        interaction=fit.share(fit.rest - fit.within) if fit.seeds else None,
        seed_variance=fit.share(fit.within) if fit.seeds else None,
        spread=None if fit.variance is None else float(np.sqrt(fit.variance)),
        seeds=fit.seeds,
    )


class _Fit:
    """The sums of squares of a metric, and of the effects one by one."""

    def __init__(self, scores: Array, places: NDArray[np.int64], choices: Sequence[Choice]) -> None:
        self.scores, self.choices = scores, choices
        # For each choice: value -> [N], 1 where a run has it; only values that some run has.
        values = [np.array(choice.values)[places] for choice in choices]
        self.indicators = [
            {level: (each == level).astype(np.float64) for level in choice.levels if level in each}
            for choice, each in zip(choices, values, strict=True)
        ]
        design = self._design()
        # The indicators of each choice add up to 1, so the solution is not unique. Take the one of
        # least norm: differences within a choice are the same in all solutions, if determined.
        self.solution_PN = np.linalg.pinv(design)
        self.rank = int(np.linalg.matrix_rank(design))
        self.total = _squares(scores - scores.mean())
        self.rest = _squares(scores - design @ (self.solution_PN @ scores))
        groups = [scores[places == place] for place in np.unique(places)]
        self.within = sum(_squares(group - group.mean()) for group in groups)
        self.seeds = len(groups) < len(scores)
        left_over = self.within if self.seeds else self.rest
        self.freedom = len(scores) - (len(groups) if self.seeds else self.rank)
        self.variance = left_over / self.freedom if self.freedom else None

    def share(self, squares: float) -> float:
        """A sum of squares as a share of the total, at least 0."""
        return max(0.0, squares / self.total) if self.total > 0 else 0.0

    def effect(self, number: int) -> Effect:
        """The effect of one of the choices."""
        name = self.choices[number].name
        without = self._design(leaving_out=number)
        freedom = self.rank - int(np.linalg.matrix_rank(without))
        told = freedom == len(self.indicators[number]) - 1
        levels = tuple(self._levels(number, told=told))
        if not told:
            return Effect(name, levels, None, None)
        lost = _squares(self.scores - without @ (np.linalg.pinv(without) @ self.scores)) - self.rest
        return Effect(name, levels, self.share(lost), self._p_value(lost, freedom))

    def _design(self, leaving_out: int | None = None) -> Array:
        """[N, P]: a column of ones, then the indicators of each choice."""
        kept = [each for number, each in enumerate(self.indicators) if number != leaving_out]
        columns = [column for indicators in kept for column in indicators.values()]
        return np.column_stack([np.ones(len(self.scores)), *columns])

    def _levels(self, number: int, *, told: bool) -> Iterator[Level]:
        indicators = self.indicators[number]
        before = 1 + sum(map(len, self.indicators[:number]))
        own_LN = self.solution_PN[before : before + len(indicators)]
        frequencies = np.array([column.mean() for column in indicators.values()])
        # Row l times the scores is the adjusted mean of value l.
        weights_LN = own_LN - frequencies @ own_LN + 1 / len(self.scores)
        for (value, column), weights in zip(indicators.items(), weights_LN, strict=True):
            runs = tuple(np.flatnonzero(column).tolist())
            if not told:
                yield Level(value, runs, None, None)
                continue
            variance = None if self.variance is None else self.variance * _squares(weights)
            error = None if variance is None else float(np.sqrt(variance))
            yield Level(value, runs, float(weights @ self.scores), error)

    def _p_value(self, squares: float, freedom: int) -> float | None:
        """The p-value of the F test, estimated with draws from Fisher's F distribution."""
        if self.variance is None or self.variance <= _NOTHING * self.total:
            return None
        reached = squares / freedom / self.variance
        draws = np.random.default_rng(_SEED).f(freedom, self.freedom, size=_SAMPLES)
        return float((np.sum(draws >= reached) + 1) / (_SAMPLES + 1))


def _squares(values: Array) -> float:
    return float(values @ values)
