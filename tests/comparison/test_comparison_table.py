"""From run folders to rows: what is counted, what is computed, what is refused, what is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Smoke
from made_up_runs import SIGNATURE, made_up_run, rouge, steady

from showtell.comparison.jobs import Job
from showtell.comparison.notes import _SCORED_ON, _signature
from showtell.comparison.rows import Row
from showtell.comparison.table import RunTable, console, cost_of, print_table, tabulate
from showtell.comparison.trainings import Training
from showtell.config import build
from showtell.errors import UserError
from showtell.experiment import resume, train
from showtell.metrics.intervals import Comparison
from showtell.metrics.statistics import SCORE_NAMES, CaptionStatistics
from showtell.report.curves import Curves

MERGE = "model=merge_glove"


def noted(table: RunTable, words: str) -> bool:
    return any(words in note for note in table.notes)


def test_a_row_has_the_mean_the_spread_and_the_number_of_its_seeds(tmp_path: Path) -> None:
    made_up_run(tmp_path, seed=1, scores=rouge(0.1, 0.3), training_seconds=60.0)
    made_up_run(tmp_path, seed=2, scores=rouge(0.2, 0.4), training_seconds=120.0)
    made_up_run(tmp_path, seed=3, scores=rouge(0.6, 0.6), training_seconds=180.0)
    (row,) = tabulate([tmp_path], "val").rows
    # Corpus scores 0.2, 0.3 and 0.6: the mean is 1.1 / 3, and the squares of the deviations
    # -0.16667, -0.06667 and 0.23333 sum to 0.086667, of which half is the variance.
    assert row.means == {"ROUGE-L": pytest.approx(0.366667, abs=1e-6)}
    assert row.spreads == {"ROUGE-L": pytest.approx(0.208167, abs=1e-6)}
    assert cost_of(row) == "3 seeds, 2.0 min"


def test_one_seed_has_no_spread_and_an_unknown_time_is_not_told(tmp_path: Path) -> None:
    made_up_run(tmp_path, seed=1, scores=steady(0.2), training_seconds=60.0)
    made_up_run(tmp_path, seed=2, scores=steady(0.4))
    made_up_run(tmp_path, MERGE, scores=steady(0.3))
    several, single = tabulate([tmp_path], "val").rows
    assert (several.minutes, cost_of(several)) == (None, "2 seeds")
    assert (single.spreads, cost_of(single)) == ({}, "1 seed")


def test_runs_are_found_once_in_the_order_given_and_the_first_row_is_the_base(
    tmp_path: Path,
) -> None:
    lstm = made_up_run(tmp_path, scores=steady(0.2))
    merge = made_up_run(tmp_path, MERGE, scores=steady(0.5))
    first, second = tabulate([merge, tmp_path, lstm], "val").rows
    assert [row.name for row in (first, second)] == [("model=merge_glove",), ("model=lstm_glove",)]
    assert first.comparisons == {}
    change = second.comparisons["ROUGE-L"]
    assert (change.difference, change.low, change.high) == pytest.approx((-0.3, -0.3, -0.3))
    assert change.p_value == pytest.approx(2 / 1001)


def test_runs_of_equal_captions_do_not_differ(tmp_path: Path) -> None:
    for override in ("model=lstm_glove", MERGE):
        made_up_run(tmp_path, override, scores=rouge(0.1, 0.9, 0.4))
    comparison = tabulate([tmp_path], "val").rows[1].comparisons["ROUGE-L"]
    assert (comparison.difference, comparison.p_value) == (0, 1)


def test_a_copy_of_a_run_is_no_second_seed(tmp_path: Path) -> None:
    run = made_up_run(tmp_path, scores=steady(0.2))
    shutil.copytree(run, tmp_path / "run_copy")
    table = tabulate([tmp_path], "val")
    assert len(table.rows[0].trainings) == 1
    assert noted(table, "run_copy has the configuration and the seed of run_00: left out")


def test_of_a_sweep_the_finished_runs_count_and_the_others_are_named(tmp_path: Path) -> None:
    made_up_run(tmp_path, scores=steady(0.2))
    failed = made_up_run(tmp_path, MERGE, scores=steady(0.5), status="failed")
    (tmp_path / "notes").mkdir()
    table = tabulate([tmp_path], "val")
    assert len(table.rows) == 1
    assert [job.sentence for job in table.unfinished] == ["run_01 failed"]
    # Named by itself it counts: somebody wants it.
    table = tabulate([failed], "val")
    assert noted(table, "run_01 is failed, not finished: counts with its best weights so far")


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none holds no run: it has no run\.json"):
        tabulate([tmp_path / "none"], "val")
    made_up_run(tmp_path, scores=steady(0.2), status="failed")
    with pytest.raises(UserError, match=r"no run in .* is finished: run_00 failed"):
        tabulate([tmp_path], "val")


def test_a_run_that_was_not_evaluated_is_named_with_the_remedy(tmp_path: Path) -> None:
    made_up_run(tmp_path, scores=steady(0.2))
    with pytest.raises(UserError, match=r"showtell evaluate .*run_00 --split test"):
        tabulate([tmp_path], "test")


@pytest.mark.parametrize("other", ["references", "images"])
def test_runs_on_another_task_are_refused_by_name(tmp_path: Path, other: str) -> None:
    made_up_run(tmp_path, scores=steady(0.2))
    if other == "references":
        made_up_run(tmp_path, MERGE, scores=steady(0.2), references="others")
    else:
        made_up_run(tmp_path, MERGE, scores=steady(0.2, images=5))
    with pytest.raises(UserError, match=r"run_01 and .*run_00 were scored on different val images"):
        tabulate([tmp_path], "val")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("statistics-val.safetensors", "x", r"statistics-val\.safetensors cannot be read"),
        ("scores-val.json", "{}", "does not belong to"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("config.yaml", "- a", "is no configuration"),
        ("run.json", "{", r"run\.json cannot be read"),
        ("run.json", '{"format": 1, "status": "finished"}', "does not say its data"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str, sentence: str) -> None:
    (made_up_run(tmp_path, scores=steady(0.2)) / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        tabulate([tmp_path], "val")


def test_the_notes_tell_what_the_test_allows_for(tmp_path: Path) -> None:
    for override in ("model=lstm_glove", MERGE):
        made_up_run(tmp_path, override, seed=1, scores=steady(0.2))
    table = tabulate([tmp_path], "val")
    assert noted(table, "one seed only: every row;")
    assert noted(table, "allow for other images, not for other seeds")
    made_up_run(tmp_path, MERGE, seed=2, scores=steady(0.3))
    table = tabulate([tmp_path], "val")
    assert noted(table, "one seed only: model=lstm_glove;")
    assert noted(table, "allow for other images and other seeds")
    made_up_run(tmp_path, "model=lstm_glove", "optim.lr=1", scores=steady(0.3))
    assert noted(tabulate([tmp_path], "val"), "where the row or the first has several")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"signature": SIGNATURE.replace("1.2", "1.3")},
            "not scored alike: scorers is pycocoevalcap-1.2 in run_00; pycocoevalcap-1.3 in run_01",
        ),
        (
            {"signature": SIGNATURE.replace("beam:3", "beam:5")},
            "not scored alike: beam is 3 in run_00; 5 in run_01",
        ),
        (
            {"signature": f"{SIGNATURE}|candidates:10|weight:8"},
            "not scored alike: candidates, weight only in run_01",
        ),
        (
            {"data": {"name": "flickr8k", "origin": {"token.txt": "12" * 32}, "images": {}}},
            "not trained on the same data: token.txt is abababab in run_00; 12121212 in run_01",
        ),
    ],
)
def test_what_makes_runs_unequal_is_told(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    made_up_run(tmp_path, scores=steady(0.2))
    made_up_run(tmp_path, MERGE, scores=steady(0.2))
    made_up_run(tmp_path, MERGE, seed=3, scores=steady(0.2), signature=f"{SIGNATURE}|pool:no")
    assert not noted(tabulate([tmp_path], "val"), "alike")
    shutil.rmtree(tmp_path / "run_02")
    shutil.rmtree(tmp_path / "run_01")
    made_up_run(tmp_path, MERGE, scores=steady(0.2), **change)
    assert noted(tabulate([tmp_path], "val"), words)


def test_a_score_that_some_lack_is_left_out_there_and_told(tmp_path: Path) -> None:
    both = {**steady(0.2), "CIDEr": [0.1] * 4}
    made_up_run(tmp_path, seed=1, scores=both)
    made_up_run(tmp_path, seed=2, scores=steady(0.3))
    made_up_run(tmp_path, MERGE, scores=both)
    table = tabulate([tmp_path], "val")
    assert [list(row.means) for row in table.rows] == [["ROUGE-L"], ["ROUGE-L", "CIDEr"]]
    assert list(table.rows[1].comparisons) == ["ROUGE-L"]
    assert noted(table, "CIDEr is left out where a run has none: run_01;")


def test_a_column_that_no_run_fills_does_not_vanish_unsaid(tmp_path: Path) -> None:
    made_up_run(tmp_path, scores=steady(0.2))
    said = "METEOR is left out: no run has it; `showtell evaluate` says what it needs"
    assert noted(tabulate([tmp_path], "val"), said)


def test_more_than_one_look_at_the_test_split_is_told(tmp_path: Path) -> None:
    made_up_run(tmp_path, scores=steady(0.2), split="test", test_looks=["then"])
    assert not noted(tabulate([tmp_path], "test"), "looks")
    made_up_run(tmp_path, MERGE, scores=steady(0.2), split="test", test_looks=["then", "now"])
    assert noted(tabulate([tmp_path], "test"), "looks: 1 in run_00; 2 in run_01")


def everything(*names: tuple[str, ...]) -> RunTable:
    """Rows with a value for each metric and every line there is."""
    nothing = CaptionStatistics((), {}, "", "")
    curves = Curves({}, "epoch")
    training = Training(Path("run"), {"training_seconds": 754.2}, {}, {}, curves, nothing)
    change = Comparison(-0.123, -0.2, 0.01, 0.0123)
    rows = [
        Row(
            name=name,
            trainings=[training] * 3,
            means=dict.fromkeys(SCORE_NAMES, 0.623),
            spreads=dict.fromkeys(SCORE_NAMES, 0.1234),
            comparisons=dict.fromkeys(SCORE_NAMES, change),
        )
        for name in names
    ]
    return RunTable(
        data="flickr8k",
        split="val",
        images=1000,
        common="data=flickr8k",
        rows=rows,
        choices=[],
        effects=[],
        unfinished=[Job("model=x", "failed", "it [broke]", None, Path("logs/0001.log"))],
        notes=["a note [of brackets]"],
    )


def test_all_metrics_and_the_longest_name_fit_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    long = tuple(f"model.hidden_size_{n}=123456" for n in range(9))
    print_table(everything(("model=lstm_glove",), long))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for name in SCORE_NAMES:
        assert name in shown
    assert all(override in shown for override in long)
    assert "note: a note [of brackets]" in shown
    assert "model=x failed: it [broke] (logs/0001.log)" in shown.partition("flickr8k")[0]


def test_the_lines_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(everything(("model=merge_glove",)))
    blocks = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "model=merge_glove", "3", "seeds,", "13", "min"] in blocks
    assert ["1", "mean", *["62.3"] * 8] in blocks
    assert ["spread", *["±12.3"] * 8] in blocks
    assert ["change", *["-12.3"] * 8] in blocks
    assert ["p", *[".012"] * 8] in blocks


@pytest.mark.usefixtures("without_java")
def test_two_seeds_of_a_training_are_one_row_with_their_cost(smoke: Smoke, tmp_path: Path) -> None:
    first = shutil.copytree(smoke.folder, tmp_path / "first")
    config = smoke.config("seed=2", f"output.folder={tmp_path / 'second'}")
    second = train(config, build("data", config["data"]))
    table = tabulate([first, second], "val")
    (row,) = table.rows
    assert [training.record["seed"] for training in row.trainings] == [1, 2]
    assert (table.images, set(row.means)) == (4, set(SCORE_NAMES) - {"METEOR", "SPICE"})
    assert row.minutes and row.minutes > 0
    assert row.best_epoch in (1, 1.5, 2)
    for training in row.trainings:  # what a run that was not evaluated is taken by
        unscored = replace(training, statistics=None)
        assert unscored.scores == pytest.approx(
            {name: training.scores[name] for name in unscored.scores}
        )
        assert {"BLEU-4", "CIDEr"} <= set(unscored.scores)
    assert _SCORED_ON - {"pool"} <= _signature(row.trainings[0]).keys()
    before = row.trainings[1].seconds
    longer = smoke.config("seed=2", "trainer.max_epochs=3")
    resume(second, longer, build("data", longer["data"]))
    longer_row = tabulate([second], "val").rows[0]
    after = longer_row.trainings[0].seconds
    assert before and after and after > before
    assert len(tabulate([first, second], "val").rows) == 2


def test_a_comparison_imports_no_torch(tmp_path: Path) -> None:
    made_up_run(tmp_path, scores=steady(0.2))
    program = (
        "import sys\nfrom showtell import cli\ntry:\n    cli.main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'lightning', 'hydra'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "compare", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
