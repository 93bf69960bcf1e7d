"""A comparison as a file: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from showtell.comparison.rows import Row
from showtell.comparison.table import RunTable, in_percent, minutes_text, p_text
from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.metrics.intervals import Comparison

_CSV_COLUMNS = (
    *("split", "configuration", "metric", "n", "mean", "spread"),
    *("difference", "low", "high", "p_value", "training_minutes", "best_epoch", "seeds", "runs"),
)


def check_table_file(file: Path) -> None:
    """Refuse a file of an unknown format, before any work.

    Raises:
        UserError: its name ends neither in ``.md`` nor in ``.csv``.
    """
    if file.suffix not in _FORMS:
        raise UserError(f"{file} is neither Markdown nor CSV: name a file in {' or '.join(_FORMS)}")


def write_table(table: RunTable, file: Path) -> None:
    """Write ``table`` in the format that the suffix of ``file`` names."""
    write_atomically(file, _FORMS[file.suffix](table).encode())


def markdown(table: RunTable) -> str:
    """The table in Markdown: scores, changes against the first row with 95 % intervals, notes."""
    first, *others = table.rows
    parts = [f"### {table.title}", _scores(table)]
    if others:
        parts += [f"Change against {_name(first)}, its 95 % interval, p:", _changes(table, others)]
    parts += [f"All: {_code(table.common)}", "\n".join(f"- {note}" for note in table.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(table: RunTable) -> str:
    metrics = table.metrics

    def cells(row: Row) -> Iterator[str]:
        yield _name(row)
        yield str(len(row.trainings))
        for name in metrics:
            mean = in_percent(row.means[name]) if name in row.means else ""
            yield f"{mean} ± {in_percent(row.spreads[name])}" if name in row.spreads else mean
        yield "" if row.minutes is None else minutes_text(row.minutes)

    return _grid(["", "seeds", *metrics, "training"], map(list, map(cells, table.rows)))


def _changes(table: RunTable, rows: Sequence[Row]) -> str:
    metrics = [name for name in table.metrics if any(name in row.comparisons for row in rows)]
    lines = (
        [_name(row), *(_change(row.comparisons.get(name)) for name in metrics)] for row in rows
    )
    return _grid(["", *metrics], lines)


def _change(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    low, high = (f"{100 * bound:+.1f}" for bound in (comparison.low, comparison.high))
    p = p_text(comparison.p_value)
    return f"{100 * comparison.difference:+.1f} [{low}, {high}] p={p}"


def _grid(header: Sequence[str], lines: Iterable[list[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _name(row: Row) -> str:
    return _code(" ".join(row.name))


def _code(text: str) -> str:
    """Inline code whose bars and backticks do not end it or a table cell."""
    escaped = text.replace("|", r"\|").replace("`", "'")
    return f"`{escaped}`"


def comma_separated(table: RunTable) -> str:
    """The table as CSV: a line per configuration and metric, raw scores, unknown cells empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for metric, mean in row.means.items():
            test = row.comparisons.get(metric)
            numbers = {"metric": metric, "mean": mean, "spread": row.spreads.get(metric)}
            writer.writerow(_origin(table, row) | numbers | (asdict(test) if test else {}))
    return stream.getvalue()


def _origin(table: RunTable, row: Row) -> dict[str, object]:
    return {
        "split": table.split,
        "configuration": " ".join(row.name),
        "n": len(row.trainings),
        "training_minutes": row.minutes,
        "best_epoch": row.best_epoch,
        "seeds": " ".join(str(training.record.get("seed")) for training in row.trainings),
        "runs": " ".join(training.folder.name for training in row.trainings),
    }


_FORMS: dict[str, Callable[[RunTable], str]] = {".md": markdown, ".csv": comma_separated}
