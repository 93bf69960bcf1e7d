"""The page of figures: what was measured is what it shows, in words and in the drawing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from page import BEGIN, END, PAGE, Measured, drawing, figures_of, read_reports, with_figures

MACHINE = {
    "cpu": "Test",
    "cores": 2,
    "cpu_capability": "AVX2",
    "threads": 2,
    "gpu": None,
    "python": "3.11.7",
    "packages": {"torch": "2.14.1", "openvino": "2026.4"},
}


def figure(name: str, value: float, target: float | None, **others: Any) -> dict[str, Any]:
    found = {"low": value, "high": value, "unit": "x", "at_most": False, "reached": None}
    return {"name": name, "value": value, "target": target, **found, **others}


def report(name: str, *figures: dict[str, Any], command: str = "python b.py") -> dict[str, Any]:
    return {"name": name, "command": command, "machine": MACHINE, "figures": list(figures)}


REPORTS = [
    report(
        "training",
        figure("over cells", 2.5, 2.0, low=2.25, high=3.0, reached=True),
        figure("share <of> the peak", 0.5, 0.6, reached=False),
    ),
    report("startup", figure("help", 0.25, 1.0, unit="s", at_most=True, reached=True)),
    report("other", figure("rate", 12.3, None, unit="images/s")),
]


def test_the_table_says_what_was_measured() -> None:
    page = with_figures(f"before\n{BEGIN}\nold\n{END}\nafter\n", REPORTS)
    assert page.startswith(f"before\n{BEGIN}\n| stage |")
    assert page.endswith(f"\n{END}\nafter\n")
    assert "old" not in page
    assert "| training | over cells | 2.5 x | 2.25 to 3 | ≥ 2 | yes |\n" in page
    assert "| training | share <of> the peak | 0.5 x |  | ≥ 0.6 | **no** |\n" in page
    assert "| startup | help | 0.25 s |  | ≤ 1 | yes |\n" in page
    assert "| other | rate | 12.3 images/s |  |  |  |\n" in page
    assert page.count("Measured on 2 cores (Test)") == 1


def test_writing_the_figures_twice_changes_nothing() -> None:
    once = with_figures(PAGE.read_text(encoding="utf-8"), REPORTS)
    assert with_figures(once, REPORTS) == once


@pytest.mark.parametrize("page", ["none", f"{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_not_touched(page: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        with_figures(page, REPORTS)


def bars(svg: str) -> list[tuple[str, float, float]]:
    """Tone, left and right end of each bar."""
    namespace = "{http://www.w3.org/2000/svg}"
    found = ElementTree.fromstring(svg).iter(f"{namespace}rect")
    rects = [rect.attrib for rect in found if rect.get("class") != "ground"]
    return [(r["class"], float(r["x"]), float(r["x"]) + float(r["width"])) for r in rects]


def test_bars_go_right_beyond_the_target_and_left_short_of_it() -> None:
    svg = drawing(figures_of(REPORTS))
    over, short, seconds = bars(svg)  # what has no target has no bar
    assert [tone for tone, _, _ in (over, short, seconds)] == ["met", "missed", "met"]
    target = over[1]
    assert seconds[1] == short[2] == target
    # On a logarithmic axis: 1.25 times the target, 1/1.2 of it, a fourth of what it may take.
    assert 0 < over[2] - target < seconds[2] - target
    assert 0 < target - short[1] < over[2] - target
    assert "2 of 3 targets are reached" in svg
    assert "share &lt;of&gt; the peak" in svg


def test_a_figure_of_nothing_is_far_better_than_it_need_be() -> None:
    none = Measured("scale", "memory", 0.0, 0.0, 0.0, "GB", 1.5, True, True)
    assert none.margin > 1e6
    ((tone, left, right),) = bars(drawing([none]))
    assert (tone, left < right) == ("met", True)


def test_results_are_read_in_the_order_of_the_stages(tmp_path: Path) -> None:
    for each in REPORTS:
        (tmp_path / f"{each['name']}.json").write_text(json.dumps(each))
    assert [each["name"] for each in read_reports(tmp_path)] == ["training", "startup", "other"]


def test_a_quick_look_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make bench"):
        read_reports(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(report("x", command="python x.py --quick")))
    with pytest.raises(SystemExit, match="x was only looked at"):
        read_reports(tmp_path)
