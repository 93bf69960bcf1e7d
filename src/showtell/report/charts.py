"""Charts as inline SVG: the geometry is worked out here, ``templates/charts.html`` draws it.

Lengths are in the units of the SVG's view box, which the page scales to its column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

LABEL_GAP = 14.0  # least distance at which two labels at line ends stay readable
# Denser curves get no dots, which would merge into a band; nor do nameless ones, a background.
MAX_DOTS = 80

# A row of an effect chart is a line of text over a line of dots, which are jittered so that they do
# not hide each other.
ROW_TOP, ROW_HEIGHT, DOTS_BELOW = 4.0, 46.0, 0.68
JITTER = (0.0, -2.5, 2.5, -5.0, 5.0)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """The view box and, inside it, the edges of the plot area."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float


# Lines need room for names to their right and a mark above them; bars need neither.
LINE_FRAME = Frame(400, 250, left=38, right=336, top=26, bottom=212)
BAR_FRAME = Frame(400, 230, left=38, right=392, top=6, bottom=192)


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; ``name`` labels its end and may be empty, ``tone`` is its CSS class."""

    name: str
    points: Sequence[Point]
    tone: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis and its position."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a chart with its tooltip."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A line as drawn: its SVG path, its dots, and its name at the height ``label_y``."""

    name: str
    tone: str
    path: str
    dots: tuple[Dot, ...]
    label_y: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram: filled for one group, a cap line for the other."""

    x: float
    width: float
    filled_y: float
    capped_y: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template draws; ``summary`` is the text for screen readers."""

    frame: Frame
    title: str
    summary: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: Tick | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a choice: score and tooltip of each run, and the adjusted mean of the runs.

    ``error`` is the standard error of the mean; both are None if unknown.
    """

    name: str
    scores: Sequence[tuple[float, str]]
    mean: float | None
    error: float | None


@dataclass(frozen=True, slots=True)
class ValueRow:
    """A value as drawn: its name and mean as text above its dots, which lie around ``y``."""

    name: str
    text: str
    y: float
    dots: tuple[Dot, ...]
    mean_x: float | None
    error_x: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class EffectChart:
    """A row for each value of a choice over one axis; ``band`` has the edges of the chance band."""

    frame: Frame
    title: str
    summary: str
    x_ticks: tuple[Tick, ...]
    rows: tuple[ValueRow, ...]
    band: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class _Scale:
    """The linear map from [low, high] to [start, end], or to their middle if low equals high."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        reach = self.high - self.low
        share = (value - self.low) / reach if reach else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    from_zero: bool = True,
    mark: tuple[float, str] | None = None,
) -> Chart:
    """Curves over a common x axis that begins at 0, with their names at their ends.

    Args:
        from_zero: whether the y axis begins at 0, as it must where heights are compared.
        mark: an x value to mark, and its label.
    """
    points = [point for line in lines for point in line.points]
    lowest = 0.0 if from_zero else min(y for _, y in points)
    y_values = ticks(lowest, max(y for _, y in points), 5)
    x_high = max(x for x, _ in points) or 1.0
    frame = LINE_FRAME
    x = _Scale(0.0, x_high, frame.left, frame.right)
    y = _Scale(y_values[0], y_values[-1], frame.bottom, frame.top)
    curves = tuple(_curve(line, x, y) for line in lines)
    return Chart(
        frame,
        title,
        _summary(lines, x_name),
        x_name,
        tuple(Tick(x(v), number(v)) for v in ticks(0, x_high, 6, whole=True) if v <= x_high),
        tuple(Tick(y(v), number(v)) for v in y_values),
        curves=_spread_labels(curves),
        mark=Tick(x(mark[0]), mark[1]) if mark else None,
    )


def histogram(
    title: str, filled: Mapping[int, float], capped: Mapping[int, float], *, x_name: str
) -> Chart:
    """Histogram of two groups over the whole numbers from 0 on; shares are in per cent."""
    last = max([*filled, *capped])
    y_values = ticks(0, max([*filled.values(), *capped.values()]), 5)
    frame = BAR_FRAME
    x = _Scale(-0.5, last + 0.5, frame.left, frame.right)
    y = _Scale(0, y_values[-1], frame.bottom, frame.top)
    bars = tuple(
        Bar(
            x(n - 0.5),
            round(x(n + 0.5) - x(n - 0.5), 1),
            y(filled.get(n, 0)),
            y(capped.get(n, 0)),
            f"{n}: {filled.get(n, 0):.1f} % and {capped.get(n, 0):.1f} %",
        )
        for n in range(last + 1)
    )
    peak = max(filled, key=lambda n: filled[n], default=0)
    return Chart(
        frame,
        title,
        f"The most frequent is {peak}, with {filled.get(peak, 0):.0f} %.",
        x_name,
        tuple(Tick(x(v), number(v)) for v in ticks(0, last, 8, whole=True) if v <= last),
        tuple(Tick(y(v), f"{number(v)} %") for v in y_values),
        bars=bars,
    )


def effect_chart(
    title: str,
    values: Sequence[Value],
    *,
    axis: tuple[float, float],
    band: tuple[float, float] | None,
) -> EffectChart:
    """The runs as dots, a row for each value of one choice, with the mean of each.

    Args:
        axis: lowest and highest score in all of the page's charts of this metric, so that they
            share one scale.
        band: scores between which chance alone moves a run.
    """
    x_values = ticks(*axis, 5)
    bottom = ROW_TOP + ROW_HEIGHT * len(values)
    frame = Frame(400, bottom + 24, left=14, right=386, top=ROW_TOP, bottom=bottom)
    x = _Scale(x_values[0], x_values[-1], frame.left, frame.right)
    rows = tuple(
        _value_row(value, ROW_TOP + ROW_HEIGHT * (place + DOTS_BELOW), x)
        for place, value in enumerate(values)
    )
    said = [f"{row.name} {row.text}" for row in rows]
    # The band may be wider than the axis.
    clipped = band and (max(band[0], x_values[0]), min(band[1], x_values[-1]))
    return EffectChart(
        frame,
        title,
        ", ".join(said),
        tuple(Tick(x(v), number(v)) for v in x_values),
        rows,
        band=(x(clipped[0]), x(clipped[1])) if clipped else None,
    )


def _value_row(value: Value, y: float, x: _Scale) -> ValueRow:
    dots = (
        Dot(x(score), round(y + JITTER[number % len(JITTER)], 1), text)
        for number, (score, text) in enumerate(value.scores)
    )
    mean, error = value.mean, value.error
    count = "1 run" if len(value.scores) == 1 else f"{len(value.scores)} runs"
    return ValueRow(
        value.name,
        count if mean is None else f"{mean:.1f} · {count}",
        round(y, 1),
        tuple(dots),
        mean_x=None if mean is None else x(mean),
        error_x=None if mean is None or error is None else (x(mean - error), x(mean + error)),
    )


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About ``count`` round numbers, 1, 2 or 5 times a power of ten apart, enclosing low..high."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number with up to six significant digits and no trailing zeros: 0.5, 12, 60."""
    return f"{value:.6g}"


def _curve(line: Line, x: _Scale, y: _Scale) -> Curve:
    places = [(x(a), y(b)) for a, b in line.points]
    path = "M" + "L".join(f"{a} {b}" for a, b in places)
    dots: tuple[Dot, ...] = ()
    if line.name and len(places) <= MAX_DOTS:
        dots = tuple(
            Dot(*place, f"{line.name}: {b:.4g} at {number(a)}")
            for place, (a, b) in zip(places, line.points, strict=True)
        )
    return Curve(line.name, line.tone, path, dots, places[-1][1])


def _spread_labels(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """Move labels apart, upwards from the lowest, until none covers another."""
    room_y = math.inf
    spread = [curve for curve in curves if not curve.name]
    # Reversed, so that among lines that end at the same height the first is labelled on top.
    named = [curve for curve in reversed(curves) if curve.name]
    for curve in sorted(named, key=lambda curve: -curve.label_y):
        label_y = min(curve.label_y, room_y)
        spread.append(replace(curve, label_y=label_y))
        room_y = label_y - LABEL_GAP
    return tuple(spread)


def _summary(lines: Iterable[Line], x_name: str) -> str:
    ends = (f"{line.name} ends at {line.points[-1][1]:.4g}" for line in lines if line.name)
    return f"{', '.join(ends)}, over {x_name}"
