"""Reads the score files of a run and formats them for a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showtell.errors import UserError
from showtell.metrics.statistics import SCORE_NAMES
from showtell.report.page import score_text
from showtell.types import Split

THIS_RUN = "this run"
INTERVAL, INTERVAL_BOUNDS = "95 % interval", ("95 % low", "95 % high")


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Scores of one kind: the run's own, an interval, a floor, the ceiling.

    ``cells`` has a text for each metric of the split, empty where this row has none.
    """

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SplitScores:
    """The score table of one split, this run first; ``remarks`` are entries that are not scores."""

    split: Split
    metrics: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    remarks: tuple[tuple[str, str], ...]


def read_scores(run_folder: Path, split: Split) -> SplitScores | None:
    """The content of ``scores-<split>.json``; None if the split was not evaluated.

    An entry named ``BLEU-4`` is that score. An entry with the name in its path, nested or with
    slashes, such as ``floor/BLEU-4`` or ``interval: {BLEU-4: [low, high]}``, goes into a row of its
    own below that score.

    Raises:
        UserError: the file is not a JSON object.
    """
    content = _read(run_folder / f"scores-{split}.json")
    if content is None:
        return None
    leaves = [leaf for leaf in _leaves(content) if not _is_word_figure(leaf)]
    metrics = tuple(name for name in SCORE_NAMES if name in content)
    remarks = [(_label(path), _value_text(v)) for path, v in leaves if not {*metrics} & {*path}]
    return SplitScores(split, metrics, tuple(_rows(leaves, metrics)), tuple(remarks))


def unfinished_share(run_folder: Path, split: Split) -> float | None:
    """The share of captions that the search cut off; None if the file does not say.

    Raises:
        UserError: the file is not a JSON object.
    """
    content = _read(run_folder / f"scores-{split}.json") or {}
    share = content.get("captions/share unfinished")
    return float(share) if isinstance(share, int | float) else None


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is no JSON object")
    return content


Leaf = tuple[tuple[str, ...], Any]


def _is_word_figure(leaf: Leaf) -> bool:
    """Whether an entry is about words, which have a section of their own."""
    path, _ = leaf
    return len(path) > 1 and path[0] in ("captions", "people") and path[-1] not in SCORE_NAMES


def _leaves(content: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Leaf]:
    for key, value in content.items():
        path = (*above, *key.split("/"))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _rows(leaves: list[Leaf], metrics: Sequence[str]) -> Iterator[ScoreRow]:
    """A row for each name that scores are listed under: the run's own, its interval, the rest."""
    named: dict[str, dict[str, Any]] = {THIS_RUN: {}}
    for path, value in leaves:
        if metric := next((part for part in path if part in metrics), None):
            name = _label(part for part in path if part != metric) or THIS_RUN
            named.setdefault(name, {})[metric] = value
    own, ranges = named.pop(THIS_RUN), _ranges(named)
    for name, values in {THIS_RUN: own, INTERVAL: ranges, **named}.items():
        if values:
            cells = (_value_text(values[m], is_score=True) if m in values else "" for m in metrics)
            yield ScoreRow(name, tuple(cells))


def _ranges(named: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Metric -> [low, high]; removes the rows of the two bounds from ``named``."""
    low, high = (named.pop(bound, {}) for bound in INTERVAL_BOUNDS)
    return {metric: [low[metric], high[metric]] for metric in low if metric in high}


def _label(path: Any) -> str:
    return " ".join(path).replace("_", " ")


def _value_text(value: Any, *, is_score: bool = False) -> str:
    """A value as text: a score times 100, a pair as a range."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float) and is_score:
        return score_text(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        separator = "–" if len(value) == 2 else ", "  # noqa: RUF001  a range has an en dash
        return separator.join(_value_text(item, is_score=is_score) for item in value)
    return str(value)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be used ({reason}); write it again with `showtell evaluate {path.parent}`"
    )
