from __future__ import annotations

from pathlib import Path

from small_run import METRICS

from showtell.report.curves import Best, read_curves


def written(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_text(text)
    return path


def test_values_of_an_epoch_lie_at_its_end_and_steps_between(tmp_path: Path) -> None:
    curves = read_curves(written(tmp_path, METRICS))
    assert curves.points["val/BLEU-4"] == [(1, 0.10), (2, 0.20), (3, 0.15)]
    # Four steps an epoch; the one that is not a number is left out.
    assert [x for x, _ in curves.points["train/step_loss"]] == [0.5, 1, 1.5, 2, 3]


def test_the_best_epoch_is_the_first_with_the_highest_score(tmp_path: Path) -> None:
    curves = read_curves(written(tmp_path, METRICS + "3,15,,2.6,0.20,0.6,2.0\n"))
    assert curves.best("val/BLEU-4") == Best("val/BLEU-4", 2, 0.20)
    assert curves.best("val/METEOR") is None
    assert curves.best(None) is None


def test_half_a_line_at_the_end_is_not_read(tmp_path: Path) -> None:
    whole = read_curves(written(tmp_path, METRICS))
    assert read_curves(written(tmp_path, METRICS + "3,15,2.1,2.4,0.9")) == whole


def test_before_the_first_epoch_has_ended_the_axis_counts_steps(tmp_path: Path) -> None:
    curves = read_curves(written(tmp_path, "epoch,step,train/step_loss\n0,9,4.0\n0,19,3.0\n"))
    assert curves.points == {"train/step_loss": [(10, 4.0), (20, 3.0)]}
    (chart,) = curves.charts(None)
    assert chart.x_name == "step"


def test_no_file_and_no_rows_give_no_charts(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "metrics.csv").charts(None) == []
    assert read_curves(written(tmp_path, "epoch,step\n")).charts(None) == []


def test_one_chart_for_loss_one_for_bleu_one_for_cider(tmp_path: Path) -> None:
    curves = read_curves(written(tmp_path, METRICS))
    charts = curves.charts(curves.best("val/BLEU-4"))
    assert [len(chart.curves) for chart in charts] == [3, 1, 1]
    assert all(chart.mark and chart.mark.text == "best: epoch 2" for chart in charts)
