"""The table of ``showtell compare``: its content, and its printing in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from showtell.comparison.choices import Choice, choices_among
from showtell.comparison.effects import Effect, Effects, effects_among
from showtell.comparison.jobs import Job, by_urgency
from showtell.comparison.notes import notes_on
from showtell.comparison.rows import Row, rows_of
from showtell.comparison.settings import common_part, printable
from showtell.comparison.trainings import Collection, Training, check_comparable, collect
from showtell.errors import UserError
from showtell.metrics.statistics import SCORE_NAMES
from showtell.types import Split

console = Console(highlight=False, markup=False)
EFFECTS_WIDTH = 67  # as wide as the table with all metrics above it


@dataclass(frozen=True, eq=False)
class RunTable:
    """Rows to compare on one split.

    ``common`` are the overrides that all share, ``choices`` what differs, ``effects`` what that
    does to the scores, ``unfinished`` the jobs without a row, failures first, and ``notes`` the
    caveats.
    """

    data: str
    split: Split
    images: int
    common: str
    rows: Sequence[Row]
    choices: Sequence[Choice]
    effects: Sequence[Effects]
    unfinished: Sequence[Job]
    notes: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """The scores that at least one row has."""
        return [name for name in SCORE_NAMES if any(name in row.means for row in self.rows)]

    @property
    def title(self) -> str:
        """Data set, split, number of images, and the unit of the scores."""
        return f"{self.data} {self.split}, {self.images:,} images, scores x 100"


def tabulate(paths: Sequence[Path], split: Split) -> RunTable:
    """The runs in ``paths`` as a table; runs that differ by their seed only share a row.

    A path is a run folder, or a folder of runs, of which the finished ones count. The configuration
    of the first run is the first row, which all others are compared with.

    Raises:
        UserError: a path holds no runs, no run is finished, a run has no scores on the split, or
            two were scored on different images or references.
    """
    collection = collect(paths, split)
    if not collection.trainings:
        lost = [job.sentence for job in by_urgency(collection.jobs)]
        more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
        where = ", ".join(map(str, paths))
        raise UserError(f"no run in {where} is finished: {'; '.join(lost[:3])}{more}")
    return table_of(collection, collection.trainings, split)


def table_of(collection: Collection, trainings: Sequence[Training], split: Split) -> RunTable:
    """The table of a collection, with rows in the order of ``trainings``.

    Raises:
        UserError: two were scored on different images or references.
    """
    check_comparable(trainings, split)
    rows = rows_of(trainings)
    settings = [row.trainings[0].settings for row in rows]
    choices = choices_among(settings)
    data = trainings[0].record["data"]
    scored = [t.statistics for t in trainings if t.statistics is not None]
    return RunTable(
        data=printable(str(data.get("name", "?"))),
        split=split,
        images=len(scored[0].image_ids) if scored else data.get("images", {}).get(split, 0),
        common=common_part(settings),
        rows=rows,
        choices=choices,
        effects=effects_among(rows, choices),
        unfinished=by_urgency(collection.jobs),
        notes=list(map(printable, (*collection.notes, *notes_on(rows, split)))),
    )


def print_table(table: RunTable) -> None:
    """Print unfinished jobs, the numbered rows, then which choice matters, in 80 columns."""
    if table.unfinished:
        console.print(f"not finished: {len(table.unfinished)}")
        for job in table.unfinished:
            console.print(f"  {job.sentence}" + (f" ({job.log})" if job.log else ""))
        console.print()
    console.print(f"{table.title}\nall: {table.common}\n")
    _print_rows(table)
    # With a single choice the rows already show its effect.
    if len(table.choices) > 1 and table.effects:
        _print_effects(table.effects)
    for note in table.notes:
        console.print(f"note: {note}")


def _print_rows(table: RunTable) -> None:
    legend = Table.grid("", Column(overflow="fold"), "", padding=(0, 2))
    shown = Table("", "", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in table.metrics:
        shown.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(table.rows, start=1):
        legend.add_row(str(number), " ".join(row.name), cost_of(row))
        cells = ("\n".join(column) for column in zip(*_lines(row, table.metrics), strict=True))
        shown.add_row(str(number), *cells, end_section=True)
    console.print(legend)
    console.print(shown)


def _print_effects(effects: Sequence[Effects]) -> None:
    """Print a block for each choice: its share, then the adjusted mean of each value."""
    shown = Table(
        Column("which choice matters", overflow="fold", min_width=20),
        Column("runs", justify="right"),
        *(Column(each.metric, justify="right", min_width=16) for each in effects),
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        width=EFFECTS_WIDTH,
    )
    for choice in [effect.choice for effect in effects[0].effects]:
        found = [next((e for e in each.effects if e.choice == choice), None) for each in effects]
        shown.add_row(choice, "", *map(_share_cell, found))
        first = found[0]
        assert first is not None
        for level in first.levels:
            means = (_mean_cell(effect, level.value) for effect in found)
            shown.add_row(f"  {level.value}", str(len(level.runs)), *means)
        shown.add_section()
    for name, cells in remainders(effects):
        shown.add_row(name, "", *cells)
    console.print(shown)


def _share_cell(effect: Effect | None) -> str:
    if effect is None:
        return ""
    if effect.share is None:
        return "not to be told"
    p = "" if effect.p_value is None else f" p {p_text(effect.p_value)}"
    return f"{share_text(effect.share)}{p}"


def _mean_cell(effect: Effect | None, value: str) -> str:
    means = {level.value: level.mean for level in effect.levels} if effect else {}
    mean = means.get(value)
    return "" if mean is None else in_percent(mean)


def remainders(effects: Sequence[Effects]) -> Iterator[tuple[str, list[str]]]:
    """Rows for what the main effects do not explain, and the spread: name, a cell per metric."""
    if any(each.seeds for each in effects):
        yield "their interplay", [share_text(each.interaction) for each in effects]
        yield "seeds", [share_text(each.seed_variance) for each in effects]
        name = "spread of seeds"
    else:
        yield "interplay and chance", [share_text(1 - each.explained) for each in effects]
        name = "spread of both"
    spreads = [each.spread for each in effects]
    yield name, ["" if s is None else f"±{in_percent(s)}" for s in spreads]


def share_text(share: float | None) -> str:
    """A share of the variance in per cent; empty if unknown."""
    return "" if share is None else f"{100 * share:.0f} %"


def _lines(row: Row, metrics: Sequence[str]) -> Iterator[list[str]]:
    """The lines of a row's block: a label, then a cell for each metric."""
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
    """A score times 100, as papers print it."""
    return f"{100 * score:.1f}"


def p_text(p_value: float) -> str:
    """A p-value with three digits, ``.012``; ``<.001`` instead of ``.000``."""
    return "<.001" if p_value < 0.001 else f"{p_value:.3f}".lstrip("0")


def cost_of(row: Row) -> str:
    """The number of seeds and the mean time of one training: ``3 seeds, 38 min``."""
    n = len(row.trainings)
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    return seeds if row.minutes is None else f"{seeds}, {minutes_text(row.minutes)}"


def minutes_text(minutes: float) -> str:
    """Minutes as text: ``0.4 min``, ``38 min``."""
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"
