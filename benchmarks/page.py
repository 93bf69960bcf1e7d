"""Write the measured figures into docs/performance.md, and draw them.

    python benchmarks/page.py [--results outputs/bench]

The table between the page's two markers and ``docs/performance.svg`` are made from the JSON files
that the benchmarks wrote, and from nothing else; the rest of the page is left as it is.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from measure import RESULTS, short

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
DRAWING = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
# The stages of a run, in order; other benchmarks follow them.
ORDER = (
    *("extraction", "training", "validation", "scores", "decoding"),
    *("startup", "scale", "sweep"),
)

# The drawing, in pixels.
WIDTH, ROW, TOP, MARGIN = 860, 22, 58, 12
NAMES_END, BARS_END = 400, 720
# Least extent of the axis on both sides of the target.
LEAST_REACH = 2.0


@dataclass(frozen=True)
class Measured:
    """One figure as a benchmark wrote it."""

    benchmark: str
    name: str
    value: float
    low: float
    high: float
    unit: str
    target: float | None
    at_most: bool
    reached: bool | None

    @property
    def margin(self) -> float:
        """How many times better than its target it is; below 1 if it falls short of it."""
        assert self.target is not None
        best = 1e9  # of a value of 0, or less, that should be small
        if self.at_most:
            return self.target / self.value if self.value > 0 else best
        return self.value / self.target


def main() -> None:
    """Parse the command line, then write the page and the drawing."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    write_page(options.parse_args().results)


def write_page(results: Path) -> None:
    """Rewrite the table and the drawing from the JSON files in a folder."""
    reports = read_reports(results)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_figures(page, reports), encoding="utf-8")
    DRAWING.write_text(drawing(figures_of(reports)), encoding="utf-8")
    print(f"wrote {PAGE} and {DRAWING}")


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """All reports in a folder, in the order of the stages.

    Raises:
        SystemExit: there is none, or one was measured with ``--quick``.
    """
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    if not reports:
        raise SystemExit(f"{folder} holds no results; run the benchmarks first: make bench")
    quick = [report["name"] for report in reports if "--quick" in report["command"].split()]
    if quick:
        raise SystemExit(f"{folder}: {quick[0]} was only looked at (--quick); run it in full")
    return sorted(reports, key=lambda report: (_place(report["name"]), report["name"]))


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def figures_of(reports: Iterable[dict[str, Any]]) -> list[Measured]:
    """All figures of all reports."""
    return [
        Measured(benchmark=report["name"], **figure)
        for report in reports
        for figure in report["figures"]
    ]


def with_figures(page: str, reports: Sequence[dict[str, Any]]) -> str:
    """The page with the table of these reports between its markers.

    Raises:
        ValueError: the page does not have each marker exactly once.
    """
    if not page.count(BEGIN) == page.count(END) == 1:
        raise ValueError(f"the page needs {BEGIN} and {END}, once each")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return "\n".join([before + BEGIN, *table(reports), END]) + after


def table(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: a row for each figure, then the machines and the commands."""
    yield "| stage | figure | measured | of all turns | target | reached |"
    yield "|---|---|---|---|---|---|"
    for figure in figures_of(reports):
        spread = f"{short(figure.low)} to {short(figure.high)}" if figure.low < figure.high else ""
        bound = (
            ""
            if figure.target is None
            else f"{'≤' if figure.at_most else '≥'} {short(figure.target)}"
        )
        reached = {None: "", True: "yes", False: "**no**"}[figure.reached]
        value = f"{short(figure.value)} {figure.unit}"
        yield f"| {figure.benchmark} | {figure.name} | {value} | {spread} | {bound} | {reached} |"
    yield ""
    machines = {machine_of(report): None for report in reports}
    yield from (f"Measured on {machine}." for machine in machines)
    yield ""
    yield "```sh"
    yield from (report["command"] for report in reports)
    yield "```"


def machine_of(report: dict[str, Any]) -> str:
    """The machine of a report, in words."""
    machine = report["machine"]
    chip = machine["gpu"] or f"{machine['cores']} cores ({machine['cpu']})"
    packages = machine["packages"]
    return (
        f"{chip}, {machine['cpu_capability']}, {machine['threads']} threads, Python "
        f"{machine['python']}, PyTorch {packages['torch']}, OpenVINO {packages['openvino']}"
    )


def drawing(figures: Iterable[Measured]) -> str:
    """SVG with a bar for each figure that has a target: how far beyond or short of it it is."""
    shown = [figure for figure in figures if figure.target is not None]
    reach = max([LEAST_REACH, *(max(f.margin, 1 / f.margin) for f in shown if f.margin < 1e8)])
    height = TOP + ROW * len(shown) + MARGIN
    summary = f"{sum(bool(f.reached) for f in shown)} of {len(shown)} targets are reached"
    target_x = _x(1.0, reach)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{summary}" font-family="system-ui, sans-serif" font-size="12">',
            STYLE,
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
            f'<text class="title" x="{MARGIN}" y="24">{summary}</text>',
            f'<text class="quiet" x="{target_x}" y="44" text-anchor="middle">target</text>',
            *(line for tick in _ticks(reach) for line in _tick(tick, reach, height)),
            *(line for row, figure in enumerate(shown) for line in _bar(figure, row, reach)),
            f'<line class="target" x1="{target_x}" x2="{target_x}" y1="{TOP - 8}" '
            f'y2="{height - MARGIN}"/>',
            "</svg>",
            "",
        ]
    )


# Legible in light and dark mode; the bars differ in lightness too, not only in hue.
STYLE = """<style>
.ground { fill: #ffffff } text { fill: #1f2328 } .title { font-size: 15px; font-weight: 600 }
.quiet { fill: #59636e } .met { fill: #1a7f5a } .missed { fill: #d9822b }
.target { stroke: #1f2328; stroke-width: 1.5 } .grid { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } text { fill: #f0f6fc } .quiet { fill: #9198a1 }
.met { fill: #3fb68b } .missed { fill: #e8a158 } .target { stroke: #f0f6fc }
.grid { stroke: #3d444d }
}
</style>"""


def _x(margin: float, reach: float) -> float:
    """The x position of a margin on the logarithmic axis, whose middle is the target."""
    share = (math.log(min(max(margin, 1 / reach), reach)) / math.log(reach) + 1) / 2
    return round(NAMES_END + share * (BARS_END - NAMES_END), 1)


def _ticks(reach: float) -> list[float]:
    """Powers of 2 (of 4 or more if those are too many) on both sides of the target."""
    step = 2 ** math.ceil(math.log2(reach) / 4)
    steps = int(math.log(reach) / math.log(step))
    return [step**power for power in range(-steps, steps + 1) if power]


def _tick(margin: float, reach: float, height: int) -> Iterator[str]:
    x = _x(margin, reach)
    text = f"{margin:g} x" if margin > 1 else f"1/{1 / margin:g}"
    yield f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{height - MARGIN}"/>'
    yield f'<text class="quiet" x="{x}" y="44" text-anchor="middle">{text}</text>'


def _bar(figure: Measured, row: int, reach: float) -> Iterator[str]:
    """Name, bar from the target to the figure, and the figure in numbers."""
    y = TOP + ROW * row
    here, target = _x(figure.margin, reach), _x(1.0, reach)
    left, width = min(here, target), round(abs(here - target), 1)
    name = f"{figure.benchmark}: {figure.name}"
    bound = "≤" if figure.at_most else "≥"
    numbers = f"{short(figure.value)} {figure.unit} ({bound} {short(figure.target or 0)})"
    tone = "met" if figure.reached else "missed"
    yield f'<text x="{NAMES_END - 12}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
    yield f'<rect class="{tone}" x="{left}" y="{y + 3}" width="{width}" height="{ROW - 8}"/>'
    yield f'<text class="quiet" x="{BARS_END + 10}" y="{y + 13}">{escape(numbers)}</text>'


if __name__ == "__main__":
    main()
