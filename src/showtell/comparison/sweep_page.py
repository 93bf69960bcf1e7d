"""The report about a sweep: failed jobs, the best run, which choice matters, example captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

from showtell.comparison.jobs import Job, by_urgency, is_sweep, log_tail
from showtell.comparison.rows import Row, best_first
from showtell.comparison.settings import command_of
from showtell.comparison.side_by_side import SideBySide, side_by_side
from showtell.comparison.sweep_charts import AllCurves, ChoiceCharts, all_curves, choice_charts
from showtell.comparison.table import (
    RunTable,
    in_percent,
    minutes_text,
    p_text,
    remainders,
    share_text,
    table_of,
)
from showtell.comparison.trainings import Collection, Training, collect
from showtell.errors import UserError
from showtell.metrics.statistics import SCORE_NAMES
from showtell.report.page import write_page
from showtell.report.results import SplitScores, read_scores
from showtell.report.run_page import REPORT
from showtell.types import Split

# Selecting on the test split would make its scores optimistic.
SPLIT: Split = "val"
USUAL_METRIC = "BLEU-4"
# Further rows of a table or list are folded away.
SHOWN_ROWS = 20


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A job without scores; path of its log relative to the sweep's folder, and its last lines."""

    job: Job
    log: str | None
    tail: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of a configuration as text: mean, spread, change against the first row."""

    mean: str
    spread: str
    change: str


@dataclass(frozen=True, slots=True)
class Line:
    """A configuration as a line of the table."""

    number: int
    name: Sequence[str]
    seeds: int
    cells: Sequence[Cell]
    training: str


@dataclass(frozen=True)
class BestRun:
    """The best run of the best configuration, the command to repeat it, the link to its report."""

    training: Training
    line: Line
    command: str
    scores: SplitScores | None
    problem: str | None
    link: str | None


@dataclass(frozen=True)
class Results:
    """All that is shown if at least one run was scored; ``metric`` ranks the configurations."""

    table: RunTable
    metric: str
    lines: Sequence[Line]
    best: BestRun
    charts: Sequence[ChoiceCharts]
    remainders: Sequence[tuple[str, list[str]]]
    curves: AllCurves | None
    captions: SideBySide

    @property
    def runs(self) -> int:
        """The number of scored runs."""
        return sum(line.seeds for line in self.lines)


def write_sweep_report(sweep: Path, output: Path | None = None) -> Path:
    """Write one self-contained HTML page about a folder of runs; return where it is.

    Configurations are ranked on the validation split, by the mean over their seeds of the metric
    that selected the weights. A job that failed, still runs or cannot be read is listed with its
    cause.

    Args:
        sweep: the folder with the runs, and ``sweep.json`` where a launcher wrote one.
        output: the file to write; ``report.html`` in the folder by default.

    Raises:
        UserError: the folder holds no runs, runs were scored on different images, or the page
            cannot be written.
    """
    if not is_sweep(sweep):
        raise UserError(
            f"{sweep} is neither a run nor a sweep: it has no run.json, and no folder in it has; "
            "give what `python train.py` printed after `run:`, or the folder around it"
        )
    output = output or sweep / REPORT
    collection = collect([sweep], SPLIT)
    results = _results(sweep, output, collection) if collection.trainings else None
    return write_page(
        output,
        "sweep.html",
        title=_title(results),
        folder=sweep.resolve().name,
        counts=_counts(collection.jobs),
        unfinished=[_unfinished(sweep, job) for job in by_urgency(collection.jobs)],
        results=results,
        shown_rows=SHOWN_ROWS,
        share=share_text,
        p=p_text,
        percent=in_percent,
    )


def _results(sweep: Path, output: Path, collection: Collection) -> Results:
    metric = ranking_metric(collection.trainings)
    table = table_of(collection, best_first(collection.trainings, metric), SPLIT)
    lines = [_line(number, row, table) for number, row in enumerate(table.rows, start=1)]
    best = table.rows[0].trainings[0]
    return Results(
        table=table,
        metric=metric,
        lines=lines,
        best=_best_run(best, lines[0], output),
        charts=choice_charts(table.effects),
        remainders=list(remainders(table.effects)),
        curves=all_curves(table, collection.jobs, best),
        captions=side_by_side(table.rows, SPLIT),
    )


def ranking_metric(trainings: Sequence[Training]) -> str:
    """The metric that selected the weights of all, else BLEU-4, else the first that all have."""
    monitors = {(training.monitor or "").removeprefix(f"{SPLIT}/") for training in trainings}
    common = [name for name in SCORE_NAMES if all(name in t.scores for t in trainings)]
    for name in (*monitors, USUAL_METRIC):
        if name in common and (len(monitors) == 1 or name == USUAL_METRIC):
            return name
    return common[0] if common else USUAL_METRIC


def _title(results: Results | None) -> str:
    if results is None:
        return "A sweep without results"
    swept = [choice.name for choice in results.table.choices]
    if len(swept) > 3:
        swept = [f"{len(swept)} choices"]
    what = " × ".join(swept) or "seeds of " + " ".join(results.table.rows[0].name)  # noqa: RUF001
    return f"{what} on {results.table.data}"


def _counts(jobs: Sequence[Job]) -> list[tuple[str, int]]:
    """Number of jobs by status: failed first, finished last."""
    counts = Counter(job.status for job in jobs)
    finished = counts.pop("finished", 0)
    return [*sorted(counts.items(), key=lambda item: item[0] != "failed"), ("finished", finished)]


def _unfinished(sweep: Path, job: Job) -> Unfinished:
    log = None if job.log is None else relpath(job.log, sweep)
    return Unfinished(job, log, log_tail(job))


def _line(number: int, row: Row, table: RunTable) -> Line:
    training = "" if row.minutes is None else minutes_text(row.minutes)
    cells = [_cell(row, metric) for metric in table.metrics]
    return Line(number, row.name, len(row.trainings), cells, training)


def _cell(row: Row, metric: str) -> Cell:
    mean, spread = row.means.get(metric), row.spreads.get(metric)
    change = ""
    if test := row.comparisons.get(metric):
        change = f"{100 * test.difference:+.1f}, p {p_text(test.p_value)}"
    return Cell(
        "" if mean is None else in_percent(mean),
        "" if spread is None else f"±{in_percent(spread)}",
        change.replace("-", "−"),  # noqa: RUF001  the sign, not the hyphen
    )


def _best_run(training: Training, line: Line, output: Path) -> BestRun:
    scores, problem = None, None
    try:
        scores = read_scores(training.folder, SPLIT)
    except UserError as error:
        problem = str(error)
    report = training.folder / REPORT
    beside = Path(relpath(report.resolve(), output.resolve().parent))
    link = quote(beside.as_posix()) if report.is_file() else None
    return BestRun(training, line, command_of(training.config), scores, problem, link)
