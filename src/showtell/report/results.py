"""The score files of a run, read and made ready to show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showtell.errors import UserError
from showtell.metrics.statistics import SCORE_NAMES
from showtell.report.page import score_text
from showtell.types import Split


@dataclass(frozen=True, slots=True)
class Score:
    """One metric, and what stands beside it: floors, ceiling, interval."""

    name: str
    text: str
    beside: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SplitScores:
    """The scores of one split; ``remarks`` are the entries of the file that are no scores."""

    split: Split
    scores: tuple[Score, ...]
    remarks: tuple[tuple[str, str], ...]


def read_scores(run_folder: Path, split: Split) -> SplitScores | None:
    """What ``scores-<split>.json`` holds; None when the split was not evaluated.

    An entry named ``BLEU-4`` is that score. One whose path has the name in it, nested or with
    slashes as ``floor/BLEU-4`` or ``interval: {BLEU-4: [low, high]}``, stands beside that score.

    Raises:
        UserError: the file is no JSON object.
    """
    content = _read(run_folder / f"scores-{split}.json")
    if content is None:
        return None
    leaves = [leaf for leaf in _leaves(content) if not _is_word_figure(leaf)]
    scores = tuple(
        Score(name, _value_text(content[name], name), _beside(leaves, name))
        for name in SCORE_NAMES
        if name in content
    )
    shown = {score.name for score in scores}
    remarks = [(_label(path), _value_text(v)) for path, v in leaves if shown.isdisjoint(path)]
    return SplitScores(split, scores, tuple(remarks))


def unfinished_share(run_folder: Path, split: Split) -> float | None:
    """The share of captions that the search cut off, where the split was evaluated.

    Raises:
        UserError: the file is no JSON object.
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
    """Whether it is about words, which have a section of their own."""
    path, _ = leaf
    return len(path) > 1 and path[0] in ("captions", "people") and path[-1] not in SCORE_NAMES


def _leaves(content: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Leaf]:
    for key, value in content.items():
        path = (*above, *key.split("/"))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _beside(leaves: list[Leaf], name: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_label(part for part in path if part != name), _value_text(value, name))
        for path, value in leaves
        if name in path and len(path) > 1
    )


def _label(path: Any) -> str:
    return " ".join(path).replace("_", " ")


def _value_text(value: Any, name: str = "") -> str:
    """A value for people: scores by their metric's rule, a pair as a range."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float) and name:
        return score_text(value, name)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        separator = "–" if len(value) == 2 else ", "  # noqa: RUF001  a range has an en dash
        return separator.join(_value_text(item, name) for item in value)
    return str(value)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be used ({reason}); write it again with `showtell evaluate {path.parent}`"
    )
