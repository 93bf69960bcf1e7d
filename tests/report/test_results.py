from __future__ import annotations

import json
from pathlib import Path

import pytest

from showtell.errors import UserError
from showtell.report.results import read_scores


def table_of(folder: Path, content: object) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The metrics, and the cells of each row."""
    (folder / "scores-val.json").write_text(json.dumps(content))
    found = read_scores(folder, "val")
    assert found is not None
    return found.metrics, {row.name: row.cells for row in found.rows}


def test_every_score_is_shown_times_100(tmp_path: Path) -> None:
    content = {"CIDEr": 0.55312, "BLEU-1": 0.6312, "ROUGE-L": 0.46, "images": 9}
    metrics, rows = table_of(tmp_path, content)
    assert metrics == ("BLEU-1", "ROUGE-L", "CIDEr")
    assert rows == {"this run": ("63.1", "46.0", "55.3")}


def test_floors_ceilings_and_intervals_have_a_cell_for_each_metric(tmp_path: Path) -> None:
    content = {
        "BLEU-4": 0.2,
        "CIDEr": 0.5,
        "constant caption/BLEU-4": 0.086,
        "ceiling": {"BLEU-4": 0.214, "CIDEr": 0.821},
        "bounds": {"CIDEr": [0.48, 0.52]},
        "95 % low/BLEU-4": 0.194,
        "95 % high/BLEU-4": 0.2204,
    }
    _, rows = table_of(tmp_path, content)
    assert list(rows.items()) == [
        ("this run", ("20.0", "50.0")),
        ("95 % interval", ("19.4–22.0", "")),  # noqa: RUF001
        ("constant caption", ("8.6", "")),
        ("ceiling", ("21.4", "82.1")),
        ("bounds", ("", "48.0–52.0")),  # noqa: RUF001
    ]


def test_a_skipped_metric_is_named_with_its_remedy(tmp_path: Path) -> None:
    table_of(tmp_path, {"BLEU-1": 0.5, "skipped/METEOR": "install Java", "references": 5000})
    found = read_scores(tmp_path, "val")
    assert found is not None
    assert found.remarks == (("skipped METEOR", "install Java"), ("references", "5,000"))


def test_a_split_that_was_not_evaluated_has_none(tmp_path: Path) -> None:
    assert read_scores(tmp_path, "test") is None


@pytest.mark.parametrize("damaged", ["{", "[1, 2]", "\xff"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "scores-val.json").write_text(damaged, encoding="latin-1")
    with pytest.raises(UserError, match=r"scores-val\.json cannot be used .*showtell evaluate"):
        read_scores(tmp_path, "val")
