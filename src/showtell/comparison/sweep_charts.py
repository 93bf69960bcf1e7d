"""The charts of a sweep: the effect of each choice, and the curves of all runs in one chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from showtell.comparison.choices import Choice
from showtell.comparison.effects import METRICS, Effect, Effects
from showtell.comparison.jobs import Job
from showtell.comparison.table import RunTable
from showtell.comparison.trainings import Training
from showtell.report.charts import Chart, EffectChart, Line, Point, Value, effect_chart, line_chart
from showtell.report.curves import METRICS_FILE, read_curves

# Colours that are easily distinguished in both colour schemes; style.css has as many.
COLOURS = 6
UNFINISHED, PLAIN = "unfinished", "plain"

# A difference of scores (times 100) that is only rounding.
LEAST_SPAN = 1e-6


@dataclass(frozen=True, slots=True)
class ChoiceCharts:
    """One choice: its effect on each metric, with a chart of it."""

    choice: str
    effects: Sequence[tuple[str, Effect]]
    charts: Sequence[EffectChart]


@dataclass(frozen=True, slots=True)
class AllCurves:
    """Validation curves; ``keys`` are the values of ``choice`` with their CSS classes."""

    choice: str | None
    keys: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    unfinished: bool


def choice_charts(effects: Sequence[Effects]) -> list[ChoiceCharts]:
    """Charts of the choices, most important first; all charts of a metric share one scale."""
    charts: dict[str, ChoiceCharts] = {}
    for each in effects:
        axis = _axis(each)
        for effect in each.effects:
            entry = charts.setdefault(effect.choice, ChoiceCharts(effect.choice, [], []))
            chart = _effect_chart(each, effect, axis)
            charts[effect.choice] = ChoiceCharts(
                effect.choice, [*entry.effects, (each.metric, effect)], [*entry.charts, chart]
            )
    return list(charts.values())


def _axis(effects: Effects) -> tuple[float, float]:
    means = [mean for effect in effects.effects for mean in effect.means]
    shown = [100 * value for value in (*effects.scores, *means)]
    low, high = min(shown), max(shown)
    # If all runs score the same, their means differ by rounding only, which must not be magnified.
    return (low, high) if high - low > LEAST_SPAN else (low, low)


def _effect_chart(effects: Effects, effect: Effect, axis: tuple[float, float]) -> EffectChart:
    values = [
        Value(
            level.value,
            [(100 * effects.scores[n], _told(effects, n)) for n in level.runs],
            None if level.mean is None else 100 * level.mean,
            None if level.error is None else 100 * level.error,
        )
        for level in effect.levels
    ]
    mean, spread = 100 * effects.mean, effects.spread
    band = None if spread is None else (mean - 100 * spread, mean + 100 * spread)
    return effect_chart(f"{effects.metric} by {effect.choice}", values, axis=axis, band=band)


def _told(effects: Effects, run: int) -> str:
    return f"{effects.runs[run].folder.name}: {100 * effects.scores[run]:.1f}"


def all_curves(table: RunTable, jobs: Sequence[Job], best: Training) -> AllCurves | None:
    """BLEU-4 and CIDEr of every run by epoch, the best drawn last; None if none was logged.

    Coloured by the most important choice, unless it has more values than there are colours.
    """
    choice = _colouring(table)
    tones = _tones(choice)
    runs = []
    for number, row in enumerate(table.rows):
        tone = tones[choice.values[number]] if choice else PLAIN
        runs += [(training, tone) for training in row.trainings]
    unfinished = [read_curves(j.folder / METRICS_FILE) for j in jobs if j.folder and not j.finished]
    charts = []
    for metric in METRICS:
        name = f"val/{metric}"
        lines = [Line("", p, UNFINISHED) for c in unfinished if (p := _points(c.points, name))]
        for training, tone in sorted(runs, key=lambda run: run[0] is best):
            if points := _points(training.curves.points, name):
                is_best = training is best
                lines.append(Line("best" * is_best, points, f"{tone} best" if is_best else tone))
        if lines:
            title = f"Validation {metric} x 100"
            charts.append(line_chart(title, lines, x_name="epoch", from_zero=False))
    drawn = any("val/BLEU-4" in curves.points for curves in unfinished)
    keys = list(tones.items())
    return AllCurves(choice.name if choice else None, keys, charts, drawn) if charts else None


def _points(points: Mapping[str, Sequence[Point]], name: str) -> list[Point]:
    return [(x, 100 * y) for x, y in points.get(name, ())]


def _colouring(table: RunTable) -> Choice | None:
    """The choice that the curves are coloured by, if any."""
    if not table.effects or not table.effects[0].effects:
        return None
    first = table.effects[0].effects[0].choice
    (choice,) = [choice for choice in table.choices if choice.name == first]
    return choice if len(choice.levels) <= COLOURS else None


def _tones(choice: Choice | None) -> dict[str, str]:
    """Value -> its CSS class."""
    if choice is None:
        return {}
    return {level: f"value-{number}" for number, level in enumerate(choice.levels, start=1)}
