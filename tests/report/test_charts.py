from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showtell.report.charts import (
    BAR_FRAME,
    LABEL_GAP,
    LINE_FRAME,
    Line,
    histogram,
    line_chart,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 0.55, 5, [0, 0.2, 0.4, 0.6]),
        (0, 63.1, 5, [0, 20, 40, 60, 80]),
        (2.1, 4.0, 5, [2.0, 2.5, 3.0, 3.5, 4.0]),
        (0, 0, 5, [0, 1]),
        (-3, -3, 5, [-3, -2]),
    ],
)
def test_ticks_are_round_and_enclose(
    low: float, high: float, count: int, expected: list[float]
) -> None:
    assert ticks(low, high, count) == expected


def test_whole_ticks_never_part_an_epoch() -> None:
    assert ticks(0, 2, 6, whole=True) == [0, 1, 2]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_whatever_comes(low: float, extent: float) -> None:
    found = ticks(low, low + extent, 5)
    slack = 1e-6 * max(1, abs(low), extent)
    assert found[0] <= low + slack
    assert found[-1] >= low + extent - slack
    assert 2 <= len(found) <= 8


def test_a_curve_lies_where_its_values_say() -> None:
    chart = line_chart("t", [Line("a", [(0, 0), (5, 10), (10, 5)], "tone")], x_name="epoch")
    frame = LINE_FRAME
    middle_x = (frame.left + frame.right) / 2
    middle_y = (frame.top + frame.bottom) / 2
    numbers = [float(n) for n in re.findall(r"[\d.]+", chart.curves[0].path)]
    assert numbers == [frame.left, frame.bottom, middle_x, frame.top, frame.right, middle_y]


def test_the_mark_stands_over_its_epoch() -> None:
    chart = line_chart(
        "t", [Line("a", [(1, 1), (4, 2)], "tone")], x_name="epoch", mark=(4, "best: epoch 4")
    )
    assert chart.mark is not None
    assert chart.mark.at == chart.curves[0].dots[-1].x


def test_labels_at_the_line_ends_never_cover_each_other() -> None:
    lines = [Line(name, [(0, 0), (1, 10 + 0.1 * i)], "t") for i, name in enumerate("abcd")]
    heights = sorted(curve.label_y for curve in line_chart("t", lines, x_name="x").curves)
    gaps = [high - low for low, high in pairwise(heights)]
    assert min(gaps) >= LABEL_GAP - 1e-9


def test_labels_of_lines_that_end_together_keep_their_order() -> None:
    lines = [Line(name, [(0, 1), (1, 0)], "t") for name in ("BLEU-1", "BLEU-2", "BLEU-3")]
    curves = line_chart("t", lines, x_name="epoch").curves
    assert [c.name for c in sorted(curves, key=lambda c: c.label_y)] == [
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
    ]


def test_one_single_value_can_be_drawn() -> None:
    chart = line_chart("t", [Line("a", [(1, 0)], "t")], x_name="epoch", from_zero=False)
    assert len(chart.curves[0].dots) == 1


def test_bars_and_caps_have_the_height_of_their_shares() -> None:
    chart = histogram("t", {1: 20, 2: 80}, {2: 40, 4: 60}, x_name="words")
    full = BAR_FRAME.bottom - BAR_FRAME.top
    assert [bar.filled_y for bar in chart.bars] == pytest.approx(
        [BAR_FRAME.bottom - full * share for share in (0, 0.25, 1, 0, 0)], abs=0.1
    )
    assert [bar.capped_y for bar in chart.bars] == pytest.approx(
        [BAR_FRAME.bottom - full * share for share in (0, 0, 0.5, 0, 0.75)], abs=0.1
    )
