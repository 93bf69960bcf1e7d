"""Which choice matters: values worked out by hand, and the traps of unbalanced sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from showtell.comparison.choices import Choice
from showtell.comparison.effects import Effects, effects_among, effects_on
from showtell.comparison.rows import Row
from showtell.comparison.trainings import Training
from showtell.report.curves import Curves


def training(scores: Mapping[str, float]) -> Training:
    points = {f"val/{name}": [(1.0, score)] for name, score in scores.items()}
    config = {"callbacks": {"monitor": "val/BLEU-4"}}
    return Training(Path("run"), {}, config, {}, Curves(points, "epoch"), None)


def row(*bleu: float, cider: float | None = None) -> Row:
    """A configuration with the BLEU-4 of each seed."""
    more = {} if cider is None else {"CIDEr": cider}
    return Row((), [training({"BLEU-4": score, **more}) for score in bleu], {}, {}, {})


def swept(name: str, *values: str) -> Choice:
    return Choice(name, values, tuple(dict.fromkeys(values)))


def effects(rows: Sequence[Row], *choices: Choice) -> Effects:
    found = effects_on("BLEU-4", rows, choices)
    assert found is not None
    return found


GRID = list(product((-1, 1), repeat=3))  # the values of three choices, as signs
THREE = [swept(name, *(f"{s[n]:+}" for s in GRID)) for n, name in enumerate(("a", "b", "c"))]


def grid_scores(b: float = 1.0) -> list[float]:
    """20 + 2 a + b + 0 c + 0.5 a b c."""
    return [20 + 2 * x + b * y + 0.5 * x * y * z for x, y, z in GRID]


def test_effects_on_a_full_grid_of_two_by_two_by_two() -> None:
    # By the orthogonality of the signs SS / 8 = 2^2 + 1^2 + 0.5^2 = 5.25.
    found = effects([row(score) for score in grid_scores()], *THREE)
    assert [effect.share for effect in found.effects] == pytest.approx([4 / 5.25, 1 / 5.25, 0])
    means = [[level.mean for level in effect.levels] for effect in found.effects]
    assert np.array(means) == pytest.approx(np.array([[18, 22], [19, 21], [20, 20]]))
    assert [effect.reach for effect in found.effects] == pytest.approx([4, 2, 0])
    assert found.explained == pytest.approx(5 / 5.25)
    # One seed each: what is left over, 8 * 0.25, has 8 - 4 degrees of freedom.
    assert (found.seeds, found.interaction, found.seed_variance) == (False, None, None)
    assert found.spread == pytest.approx(np.sqrt(8 * 0.25 / 4))


def test_two_seeds_of_each_part_interplay_from_chance() -> None:
    rows = [row(score - 0.3, score + 0.3) for score in grid_scores()]
    found = effects(rows, *THREE)
    total = 5.25 + 0.09
    assert found.interaction == pytest.approx(0.25 / total)
    assert found.seed_variance == pytest.approx(0.09 / total)
    # 16 deviations of 0.3, 8 degrees of freedom: a variance of 0.18; a mean of 8 runs.
    assert found.seeds
    assert found.spread == pytest.approx(np.sqrt(0.18))
    assert found.effects[0].levels[0].error == pytest.approx(np.sqrt(0.18 / 8))
    assert found.effects[0].levels[0].runs == tuple(range(8))
    assert [effect.p_value for effect in found.effects] == [0.0001, 0.0001, 1.0]


def test_the_p_value_is_that_of_the_f_test() -> None:
    # F = 16 b^2 / 0.18 with 1 and 8 degrees of freedom; tables: 5.3177 is exceeded by 5 %.
    b = float(np.sqrt(5.3177 * 0.18 / 16))
    rows = [row(score - 0.3, score + 0.3) for score in grid_scores(b)]
    p_value = effects(rows, *THREE).effects[1].p_value
    assert p_value == pytest.approx(0.05, abs=0.005)


def test_where_combinations_are_missing_the_plain_mean_lies_and_the_adjusted_does_not() -> None:
    # Only the model matters; the larger rate was mostly tried with the better model.
    rows = [row(10, 10, 10), row(10), row(16), row(16, 16, 16)]
    model = swept("model", "a", "a", "b", "b")
    rate = swept("optim.lr", "1", "2", "1", "2")
    plain = [np.mean([10, 10, 10, 16]), np.mean([10, 16, 16, 16])]
    assert plain == [11.5, 14.5]
    found = {effect.choice: effect for effect in effects(rows, model, rate).effects}
    assert [level.mean for level in found["optim.lr"].levels] == pytest.approx([13, 13])
    assert [level.mean for level in found["model"].levels] == pytest.approx([10, 16])
    assert found["optim.lr"].share == pytest.approx(0, abs=1e-12)
    # Alone, the rate would pass for 8 * 1.5^2 of the 8 * 3^2.
    assert found["model"].share == pytest.approx(1 - 18 / 72)


def test_three_values_are_compared_with_an_independent_solution() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.integers(0, 3, 20), generator.integers(0, 2, 20)
    scores = generator.normal(size=20)
    choices = [swept("a", *map(str, a)), swept("b", *map(str, b))]
    found = {e.choice: e for e in effects([row(s) for s in scores], *choices).effects}
    # Treatment coding instead of all indicators and the shortest solution.
    full = np.column_stack([np.ones(20), a == 1, a == 2, b == 1]).astype(float)
    weights, rest = np.linalg.lstsq(full, scores)[:2]
    _, rest_without = np.linalg.lstsq(full[:, [0, 3]], scores)[:2]
    total = np.sum((scores - scores.mean()) ** 2)
    assert found["a"].share == pytest.approx(float((rest_without - rest)[0] / total))
    for value, offset in {"0": 0.0, "1": weights[1], "2": weights[2]}.items():
        everybody = full.copy()
        everybody[:, 1:3] = 0
        mean = (everybody @ weights).mean() + offset
        assert {level.value: level.mean for level in found["a"].levels}[value] == pytest.approx(
            mean
        )


def test_a_choice_that_cannot_be_told_from_two_others_has_no_effect_to_show() -> None:
    # b is "y" exactly where a is not 1.
    a = swept("a", "1", "2", "3")
    b = swept("b", "x", "y", "y")
    found = {e.choice: e for e in effects([row(1), row(2), row(4)], a, b).effects}
    assert (found["b"].share, found["b"].p_value, found["b"].reach) == (None, None, None)
    assert [level.mean for level in found["b"].levels] == [None, None]
    assert [level.runs for level in found["b"].levels] == [(0,), (1, 2)]


def test_equal_scores_have_no_variance_to_explain() -> None:
    found = effects([row(2), row(2)], swept("a", "1", "2"))
    assert (found.effects[0].share, found.effects[0].p_value, found.explained) == (0, None, 0)
    assert found.spread is None


def test_seeds_that_agree_to_the_last_digit_are_no_yardstick_for_a_p_value() -> None:
    found = effects([row(2, 2), row(3, 3)], swept("a", "1", "2"))
    assert (found.effects[0].share, found.effects[0].p_value) == (pytest.approx(1), None)
    assert (found.spread, found.seed_variance) == (0, 0)


def test_the_choice_that_matters_most_comes_first_on_each_metric() -> None:
    rows = [row(1, cider=1), row(1.1, cider=9), row(2, cider=1), row(2.1, cider=9)]
    minor = swept("minor", "0", "1", "0", "1")
    major = swept("major", "0", "0", "1", "1")
    bleu, cider = effects_among(rows, [minor, major])
    assert (bleu.metric, cider.metric) == ("BLEU-4", "CIDEr")
    assert [effect.choice for effect in bleu.effects] == ["major", "minor"]
    assert [effect.choice for effect in cider.effects] == ["major", "minor"]


def test_runs_without_the_metric_are_left_out_and_a_single_run_has_no_effects() -> None:
    rows = [row(1, cider=1), row(2), row(3, cider=3)]
    choice = swept("a", "1", "2", "3")
    _, cider = effects_among(rows, [choice])
    assert cider.scores == (1, 3)
    assert [level.value for level in cider.effects[0].levels] == ["1", "3"]
    assert effects_among([row(1)], []) == []
