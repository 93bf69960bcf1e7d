from __future__ import annotations

from typing import Any

from made_up_runs import composed

from showtell.comparison.choices import Choice, choices_among
from showtell.comparison.settings import settings_of

RECORD: dict[str, Any] = {"data": {}, "encoder": {}, "text": {}}


def choices(*configurations: tuple[str, ...]) -> list[Choice]:
    return choices_among([settings_of(composed(*each), RECORD) for each in configurations])


def test_what_differs_is_a_choice_with_its_values_in_order() -> None:
    found = choices(
        ("model=merge_glove", "optim.lr=0.01"),
        ("model=lstm_glove", "optim.lr=0.002"),
        ("model=lstm_glove", "optim.lr=0.01"),
    )
    assert found == [
        Choice("model", ("merge_glove", "lstm_glove", "lstm_glove"), ("merge_glove", "lstm_glove")),
        Choice("optim.lr", ("0.01", "0.002", "0.01"), ("0.002", "0.01")),
    ]


def test_one_configuration_has_nothing_swept() -> None:
    assert choices(("model=merge_glove",)) == []


def test_choices_that_always_change_together_are_one() -> None:
    (found,) = choices(
        ("optim.lr=0.002", "trainer.batch_size=64"),
        ("optim.lr=0.001", "trainer.batch_size=32"),
        ("optim.lr=0.002", "trainer.batch_size=64", "seed=2"),
    )
    assert found.name == "optim.lr + trainer.batch_size"
    assert found.values == ("0.002, 64", "0.001, 32", "0.002, 64")
    assert found.levels == ("0.001, 32", "0.002, 64")


def test_an_option_of_one_model_alone_has_a_value_for_the_others_too() -> None:
    model, size = choices(
        ("model.dense_size=128",), ("model.dense_size=256",), ("model=merge_glove",)
    )
    assert model.values == ("lstm_glove", "lstm_glove", "merge_glove")
    assert size.values == ("128", "256", "not there")
    assert size.levels == ("128", "256", "not there")


def test_the_many_numbers_of_a_search_are_cut_into_four_ranges() -> None:
    (found,) = choices(*((f"optim.lr={n}",) for n in (9, 1, 2, 3, 4, 5, 6, 7, 8)))
    assert found.levels == ("1 to 3", "4 to 5", "6 to 7", "8 to 9")
    assert found.values[:3] == ("8 to 9", "1 to 3", "1 to 3")
