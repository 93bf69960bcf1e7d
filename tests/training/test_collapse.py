"""Alarms of trainings that are broken on purpose, and silence about those that are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from showtell.decoding.beam import Hypothesis
from showtell.metrics.alarms import Alarm
from showtell.runs import TRAINING, alarms_of, read_record, write_json
from showtell.text.vocabulary import END, Vocabulary
from showtell.training.alarms import CollapseAlarms, raise_alarms
from showtell.training.validation import GeneratedCaptions

WORDS = [f"w{i}" for i in range(50)]
VOCABULARY = Vocabulary(WORDS, min_count=1, counts=[1] * len(WORDS))
REFERENCES = {f"{i}.jpg": (f"w{i} w{i + 1} w{i + 2} w{i + 3}",) for i in range(40)}
MAX_LENGTH = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "run.json", {"format": 1})
    return tmp_path


def raised(folder: Path) -> list[Alarm]:
    return alarms_of(read_record(folder)).get(TRAINING, [])


def hypothesis(words: Sequence[str], *, ended: bool = True) -> Hypothesis:
    return Hypothesis(tuple(VOCABULARY.encode(words)), 0.0, ended)


def healthy() -> list[Hypothesis]:
    """Near the references, but none of them."""
    return [hypothesis([f"w{i}", f"w{i + 1}", f"w{i + 2}"]) for i in range(40)]


@dataclass
class Validations:
    """The callback and what it looks at: validations without a model."""

    callback: CollapseAlarms
    epoch: int = 0

    def add(self, hypotheses: Sequence[Hypothesis], cider: float = 1.0) -> None:
        generated = GeneratedCaptions(
            REFERENCES, VOCABULARY, max_length=MAX_LENGTH, metrics=["CIDEr"]
        )
        generated.update(list(REFERENCES), hypotheses)
        trainer = SimpleNamespace(
            sanity_checking=False,
            is_global_zero=True,
            current_epoch=self.epoch,
            callback_metrics={"val/CIDEr": torch.tensor(cider)},
        )
        self.callback.on_validation_end(
            cast(Trainer, trainer), cast(LightningModule, SimpleNamespace(generated=generated))
        )
        self.epoch += 1


def callback(folder: Path, *, trained_on_validation: bool = False) -> CollapseAlarms:
    return CollapseAlarms(
        folder, REFERENCES, max_length=MAX_LENGTH, trained_on_validation=trained_on_validation
    )


@pytest.fixture
def validations(folder: Path) -> Validations:
    return Validations(callback(folder))


def test_a_healthy_training_is_left_alone(folder: Path, validations: Validations) -> None:
    for _ in range(3):
        validations.add(healthy())
    assert raised(folder) == []


def test_a_collapse_is_said_once_at_its_second_validation(
    folder: Path, validations: Validations, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [hypothesis(["w1", "w2"])] * 40
    validations.add(same)
    assert raised(folder) == []
    for _ in range(3):
        validations.add(same)
    (alarm,) = raised(folder)
    assert alarm.name == "one caption"
    assert alarm.finding.startswith("after epoch 2, 100% of the images get the same caption")
    assert capsys.readouterr().out.count("warning: ") == 1


def test_a_slow_start_is_no_collapse(folder: Path, validations: Validations) -> None:
    validations.add([hypothesis(["w1", "w2"])] * 40)
    validations.add(healthy())
    validations.add([hypothesis(["w1", "w2"])] * 40)
    assert raised(folder) == []


def test_a_resumed_training_remembers_the_last_validation(
    folder: Path, validations: Validations
) -> None:
    same = [hypothesis(["w1", "w2"])] * 40
    validations.add(same)
    resumed = callback(folder)
    resumed.load_state_dict(json.loads(json.dumps(validations.callback.state_dict())))
    Validations(resumed, epoch=1).add(same)
    assert [alarm.name for alarm in raised(folder)] == ["one caption"]


def test_captions_of_other_pictures_are_noticed(folder: Path, validations: Validations) -> None:
    others = healthy()[20:] + healthy()[:20]
    for _ in range(2):
        validations.add(others, cider=0.0)
    assert [alarm.name for alarm in raised(folder)] == ["picture ignored"]


def test_captions_that_never_end_are_noticed(folder: Path, validations: Validations) -> None:
    endless = [hypothesis([f"w{i}", "w1", "w2", "w3"], ended=False) for i in range(40)]
    for _ in range(2):
        validations.add(endless)
    assert [alarm.name for alarm in raised(folder)] == ["unfinished"]


@pytest.mark.parametrize(
    ("trained_on_validation", "names"), [(False, ["leaked references"]), (True, [])]
)
def test_references_by_heart_are_noticed_where_they_should_not_be_known(
    folder: Path, trained_on_validation: bool, names: list[str]
) -> None:
    by_heart = [hypothesis(text.split()) for (text,) in REFERENCES.values()]
    validations = Validations(callback(folder, trained_on_validation=trained_on_validation))
    for _ in range(2):
        validations.add(by_heart, cider=5.0)
    assert [alarm.name for alarm in raised(folder)] == names


def test_each_kind_is_raised_once_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Alarm("x", "found", "why", "do"), Alarm("y", "seen", "why", "do")
    raise_alarms(folder, [first], when="early")
    raise_alarms(folder, [first, second], when="late")
    assert [alarm.finding for alarm in raised(folder)] == ["early, found", "late, seen"]
    assert capsys.readouterr().out.count("warning: ") == 2


def test_generated_captions_know_which_were_cut_off() -> None:
    generated = GeneratedCaptions(REFERENCES, VOCABULARY, max_length=4, metrics=["BLEU"])
    assert generated.unfinished() == set()
    full = ["w1", "w2", "w3", "w4"]
    generated.update(
        ["0.jpg", "1.jpg", "2.jpg"],
        [hypothesis(full), hypothesis(full, ended=False), hypothesis([])],
    )
    assert generated.unfinished() == {"1.jpg"}
    assert generated.captions() == {"0.jpg": "w1 w2 w3 w4", "1.jpg": "w1 w2 w3 w4", "2.jpg": ""}
    assert all(END in row or len(row) == 5 for row in generated.tokens[0].tolist())


def test_generated_captions_are_told_anew_after_every_change() -> None:
    generated = GeneratedCaptions(REFERENCES, VOCABULARY, max_length=4, metrics=["BLEU"])
    generated.update(["0.jpg"], [hypothesis(["w1"])])
    generated.captions().clear()  # a copy
    assert generated.captions() == {"0.jpg": "w1"}
    generated.update(["0.jpg", "1.jpg"], [hypothesis(["w2"]), hypothesis(["w3"])])
    assert generated.captions() == {"0.jpg": "w2", "1.jpg": "w3"}
    generated.reset()
    assert generated.captions() == {}
