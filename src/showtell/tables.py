"""Prints scores, language statistics and alarms in a terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from showtell.metrics.alarms import Alarm
from showtell.metrics.floors import Yardstick
from showtell.metrics.intervals import Interval
from showtell.metrics.language import WordStatistics, figure_text
from showtell.metrics.scores import CaptionScores

console = Console(highlight=False, markup=False)


def print_scores(
    title: str,
    scores: CaptionScores,
    yardsticks: Sequence[Yardstick] = (),
    intervals: Mapping[str, Interval] | None = None,
) -> None:
    """Print scores times 100, as papers do, with intervals, yardsticks and notes."""
    table = Table(
        title=f"{title}, scores x 100",
        box=SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,  # fits 80 columns with all metrics
    )
    table.add_column("", no_wrap=True)
    for name in scores.scores:
        table.add_column(name, justify="right")
    table.add_row("this run", *_cells(scores.scores, scores.scores))
    for bound in ("low", "high") if intervals else ():
        values = {name: getattr(interval, bound) for name, interval in (intervals or {}).items()}
        table.add_row(f"95 % {bound}", *_cells(scores.scores, values), style="dim")
    for yardstick in yardsticks:
        table.add_row(yardstick.name, *_cells(scores.scores, yardstick.scores), style="dim")
    console.print(table)
    for note in scores.notes:
        console.print(f"note: {note}")
    for name, remedy in scores.skipped.items():
        console.print(f"{name} was skipped: {remedy}", markup=False)  # it holds brackets


def print_words(written: WordStatistics, people: WordStatistics) -> None:
    """Print the language statistics of the captions beside those of the references."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("captions", no_wrap=True)
    for name in ("this run", "people"):
        table.add_column(name, justify="right")
    theirs = people.figures()
    for name, value in written.figures().items():
        text = figure_text(name, theirs[name]) if name in theirs else ""
        table.add_row(name, figure_text(name, value), text)
    console.print(table)


def print_alarms(alarms: Iterable[Alarm]) -> None:
    """Print a line for each alarm."""
    for alarm in alarms:
        print(f"warning: {alarm}")


def _cells(names: Mapping[str, float], values: Mapping[str, float]) -> list[str]:
    return [f"{100 * values[name]:.1f}" if name in values else "" for name in names]
