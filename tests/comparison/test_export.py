"""The table as Markdown and CSV, letter by letter."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import made_up_run, steady

from showtell.comparison.export import check_table_file, comma_separated, markdown, write_table
from showtell.comparison.table import RunTable, tabulate
from showtell.errors import UserError

MARKDOWN = """\
### flickr8k val, 4 images, scores x 100

|  | seeds | ROUGE-L | CIDEr | training |
| --- | --: | --: | --: | --: |
| `model=lstm_glove` | 2 | 20.0 ± 0.0 | 10.0 ± 0.0 | 1.5 min |
| `model=merge_glove` | 1 | 50.0 |  |  |

Change against `model=lstm_glove`, its 95 % interval, p:

|  | ROUGE-L |
| --- | --: |
| `model=merge_glove` | +30.0 [+30.0, +30.0] p=.002 |

All: `data=flickr8k encoder=inception_v3 text=glove50 decoding=beam3 objective=cross_entropy \
optim=adamw trainer=default callbacks=default`

- one seed only: model=merge_glove; how much another seed changes the scores is not known
- changes are against the first row; p and intervals allow for other images and other seeds
- CIDEr is left out where a run has none: run_02; `showtell evaluate` says what it needs
- METEOR is left out: no run has it; `showtell evaluate` says what it needs
"""
HEADER = (
    "split,configuration,metric,n,mean,spread,difference,low,high,p_value,training_minutes,"
    "best_epoch,seeds,runs"
)


@pytest.fixture
def table(tmp_path: Path) -> RunTable:
    """Scores that do not depend on the images drawn, of seeds that agree: no chance at all."""
    for seed, seconds in ((1, 60.0), (2, 120.0)):
        scores = {**steady(0.2), "CIDEr": [0.1] * 4}
        made_up_run(tmp_path / "runs", seed=seed, scores=scores, training_seconds=seconds)
    made_up_run(tmp_path / "runs", "model=merge_glove", scores=steady(0.5))
    return tabulate([tmp_path / "runs"], "val")


def test_markdown_is_letter_for_letter_this(table: RunTable) -> None:
    assert markdown(table) == MARKDOWN


def test_markdown_of_one_row_has_no_changes(table: RunTable) -> None:
    assert "Change against" not in markdown(replace(table, rows=table.rows[:1]))


def test_csv_has_a_line_for_each_configuration_and_metric(table: RunTable) -> None:
    text = comma_separated(table)
    assert text.splitlines()[0] == HEADER
    first, second, third = csv.DictReader(text.splitlines())
    assert (first["metric"], second["metric"], third["metric"]) == ("ROUGE-L", "CIDEr", "ROUGE-L")
    assert first["configuration"] == "model=lstm_glove"
    assert (first["split"], first["n"], first["seeds"]) == ("val", "2", "1 2")
    assert (first["runs"], first["training_minutes"]) == ("run_00 run_01", "1.5")
    assert (float(first["mean"]), float(first["spread"])) == pytest.approx((0.2, 0.0))
    assert (first["difference"], first["p_value"], first["best_epoch"]) == ("", "", "")
    change = [float(third[key]) for key in ("mean", "difference", "low", "high", "p_value")]
    assert change == pytest.approx([0.5, 0.3, 0.3, 0.3, 2 / 1001])
    assert third["spread"] == ""


def test_a_name_cannot_break_the_table(table: RunTable) -> None:
    row = replace(table.rows[0], name=("model=a|b`c",))
    text = markdown(replace(table, rows=[row]))
    assert r"| `model=a\|b'c` | 2 |" in text


@pytest.mark.parametrize("name", ["table.md", "table.csv"])
def test_the_name_of_the_file_chooses_the_form(table: RunTable, tmp_path: Path, name: str) -> None:
    check_table_file(tmp_path / name)
    write_table(table, tmp_path / name)
    form = markdown if name.endswith("md") else comma_separated
    assert (tmp_path / name).read_text(encoding="utf-8") == form(table)


@pytest.mark.parametrize("name", ["table.txt", "table", "table.MD.gz"])
def test_another_form_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is neither .* name a file in \.md or \.csv"):
        check_table_file(Path(name))
