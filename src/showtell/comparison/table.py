"""The table of ``showtell compare``: what stands in it, and its form for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from showtell.comparison.notes import notes_on
from showtell.comparison.rows import Row, rows_of
from showtell.comparison.settings import common_part, printable
from showtell.comparison.trainings import (
    check_comparable,
    find_runs,
    read_training,
    without_repeats,
)
from showtell.metrics.statistics import SCORE_NAMES
from showtell.types import Split

console = Console(highlight=False, markup=False)


@dataclass(frozen=True, eq=False)
class RunTable:
    """Rows to compare on one split; ``common`` are the overrides of all, ``notes`` sentences."""

    data: str
    split: Split
    images: int
    common: str
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """The scores that at least one row has."""
        return [name for name in SCORE_NAMES if any(name in row.means for row in self.rows)]

    @property
    def title(self) -> str:
        """What was scored, and the unit of the numbers."""
        return f"{self.data} {self.split}, {self.images:,} images, scores x 100"


def tabulate(paths: Sequence[Path], split: Split) -> RunTable:
    """The runs in ``paths``, those that differ by their seed only in one row.

    A path is a run folder or a folder of them, of which the finished count. The configuration of
    the first run is the first row, which all others are compared with.

    Raises:
        UserError: a path holds no finished run; a run was not evaluated on the split, or on other
            images or references than the first.
    """
    folders, unfinished = find_runs(paths)
    trainings, repeats = without_repeats([read_training(folder, split) for folder in folders])
    check_comparable(trainings, split)
    rows = rows_of(trainings)
    return RunTable(
        data=printable(str(trainings[0].record["data"].get("name", "?"))),
        split=split,
        images=len(trainings[0].statistics.image_ids),
        common=common_part([row.trainings[0].settings for row in rows]),
        rows=rows,
        notes=list(map(printable, (*unfinished, *repeats, *notes_on(rows, split)))),
    )


def print_table(table: RunTable) -> None:
    """The rows by number, however long their names; all metrics fit 80 columns."""
    legend = Table.grid("", Column(overflow="fold"), "", padding=(0, 2))
    shown = Table("", "", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in table.metrics:
        shown.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(table.rows, start=1):
        legend.add_row(str(number), " ".join(row.name), cost_of(row))
        cells = ("\n".join(column) for column in zip(*_lines(row, table.metrics), strict=True))
        shown.add_row(str(number), *cells, end_section=True)
    console.print(f"{table.title}\nall: {table.common}\n")
    console.print(legend)
    console.print(shown)
    for note in table.notes:
        console.print(f"note: {note}")


def _lines(row: Row, metrics: Sequence[str]) -> Iterator[list[str]]:
    """The lines of a block: its word, then a cell for each metric."""
    tests = row.comparisons.items()
    yield _line("mean" if row.spreads else "score", metrics, _percentages(row.means))
    if row.spreads:
        spreads = {name: f"±{text}" for name, text in _percentages(row.spreads).items()}
        yield _line("spread", metrics, spreads)
    if row.comparisons:
        changes = {name: f"{100 * test.difference:+.1f}" for name, test in tests}
        yield _line("change", metrics, changes)
        yield _line("p", metrics, {name: p_text(test.p_value) for name, test in tests})


def _line(word: str, metrics: Sequence[str], texts: Mapping[str, str]) -> list[str]:
    return [word, *(texts.get(name, "") for name in metrics)]


def _percentages(scores: Mapping[str, float]) -> dict[str, str]:
    return {name: in_percent(score) for name, score in scores.items()}


def in_percent(score: float) -> str:
    """Times 100, as papers print scores."""
    return f"{100 * score:.1f}"


def p_text(p_value: float) -> str:
    """``.012``; the usual three digits."""
    return f"{p_value:.3f}".lstrip("0")


def cost_of(row: Row) -> str:
    """``3 seeds, 38 min``, the time that one training took."""
    n = len(row.trainings)
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    return seeds if row.minutes is None else f"{seeds}, {minutes_text(row.minutes)}"


def minutes_text(minutes: float) -> str:
    """``0.4 min``, ``38 min``."""
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"
