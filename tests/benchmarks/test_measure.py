"""The harness of the benchmarks: the numbers it prints are what it says they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from showtell.models.recurrence import run_lstm

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from measure import (
    Figure,
    Report,
    Timing,
    Work,
    matrix_product,
    memory_triad,
    products_of,
    ratio,
    short,
    time_in_turns,
)
from measure import rate as rate_of


def test_works_take_turns_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measure.SHORTEST_SAMPLE", 0.0)
    seen: list[str] = []
    works = {name: Work(lambda name=name: seen.append(name), {"calls": 1.0}) for name in "ab"}  # type: ignore[misc]
    timings = time_in_turns(works, turns=3)
    assert "".join(seen) == "aabb" + "ababab"
    assert all(len(timing.seconds) == 3 for timing in timings.values())
    assert all(seconds > 0 for timing in timings.values() for seconds in timing.seconds)


def test_a_short_call_is_repeated_and_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(float(tick) for tick in range(1000))
    monkeypatch.setattr("measure.time.perf_counter", lambda: next(ticks))  # each sample lasts 1
    monkeypatch.setattr("measure.SHORTEST_SAMPLE", 4.0)
    calls: list[None] = []
    timing = time_in_turns({"a": Work(lambda: calls.append(None), {"x": 3.0})}, turns=2)["a"]
    assert len(calls) == 1 + 4 + 4  # a call of a second is warm after one
    assert timing.seconds == (0.25, 0.25)
    assert timing.rate("x") == 12.0


def test_a_work_with_its_own_clock_is_believed() -> None:
    timing = time_in_turns({"a": Work(lambda: 2.5, {"x": 5.0}, own_clock=True)}, turns=3)["a"]
    assert timing.seconds == (2.5, 2.5, 2.5)
    assert timing.rate("x") == 2.0


def test_products_are_seen_inside_an_autograd_function() -> None:
    lstm, inputs = nn.LSTM(3, 4), torch.randn(5, 3)
    sizes = products_of(run_lstm, lstm, inputs, torch.tensor([3, 2]), None).sizes
    assert sizes == [(2, 3 + 1 + 4, 16), (2, 3 + 1 + 4, 16), (1, 3 + 1 + 4, 16)]
    batched = products_of(torch.bmm, torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert batched.sizes == [(6, 4, 5)]
    assert batched.flop == 2 * 6 * 4 * 5


def test_products_are_seen_inside_a_layer_in_inference_mode() -> None:
    with torch.inference_mode():
        assert products_of(nn.Linear(7, 5), torch.ones(2, 3, 7)).sizes == [(6, 7, 5)]


def test_rates_and_ratios_are_medians_over_turns() -> None:
    ours = Timing((1.0, 2.0, 4.0), {"tokens": 100.0})
    theirs = Timing((3.0, 4.0, 20.0), {"tokens": 50.0})
    assert ours.median_seconds == 2.0
    assert ours.rates("tokens") == [100.0, 50.0, 25.0]
    figure = ratio("times", ours, theirs, "tokens", target=5.0)
    assert (figure.value, figure.low, figure.high) == (6.0, 4.0, 10.0)  # 6, 4 and 10 by turn
    assert figure.reached
    speed = rate_of("speed", ours, "tokens", target=51.0)
    assert (speed.value, speed.low, speed.high, speed.unit) == (50.0, 25.0, 100.0, "tokens/s")
    assert speed.reached is False


def test_a_target_may_be_an_upper_bound_or_absent() -> None:
    assert Figure("seconds", 0.9, 0.8, 1.1, "s", target=1.0, at_most=True).reached
    assert not Figure("seconds", 1.1, 0.8, 1.2, "s", target=1.0, at_most=True).reached
    assert Figure("seconds", 1.1, 0.8, 1.2, "s").reached is None


def test_limits_count_what_they_do() -> None:
    product, triad = matrix_product(2, 3, 4), memory_triad(1)
    assert product.units == {"FLOP": 48.0}
    assert triad.units == {"byte": 3.0 * 2**20}
    product.call()
    triad.call()


def test_a_report_is_one_json_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timings = {"ours": Timing((1.0,), {"tokens": 5e3}), "theirs": Timing((2.0,), {"tokens": 5e3})}
    figures = [ratio("times", timings["ours"], timings["theirs"], "tokens", target=2.0)]
    report = Report("words", timings, figures, {"rows": 160})
    saved = json.loads(report.save(tmp_path / "new").read_text())
    assert saved["timings"]["ours"]["rates"] == {"tokens": 5e3}
    assert saved["figures"][0]["value"] == 2.0
    assert saved["figures"][0]["reached"] is True
    assert saved["facts"] == {"rows": 160}
    assert saved["machine"]["packages"]["torch"]
    report.show()
    assert "5 k tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"), [(0.6172, "0.617"), (12.34, "12.3"), (4567.0, "4.57 k"), (9.8e10, "98 G")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
