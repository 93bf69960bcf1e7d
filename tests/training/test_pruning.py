"""Trials that are real trainings: stopped early, diverged, or killed before they told so."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from small_training import build_training

from showtell.errors import UserError
from showtell.runs import LAST_CHECKPOINT, read_record
from showtell.search import Dimension, StudySettings, create_study, start_trial, study_and_slot
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.pruning import PruneTrial, trial_callbacks

optuna = pytest.importorskip("optuna")
SCORE = "val/BLEU-4"
EPOCHS = 6


class KilledError(Exception):
    """In place of a kill."""


class Killer(Callback):
    """Ends the training with an error in one hook, after so many epochs."""

    def __init__(self, hook: str, epoch: int) -> None:
        def kill(trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == epoch:
                raise KilledError

        setattr(self, hook, kill)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Trials of others, with scores that nobody reaches."""
    file = tmp_path / "study.journal"
    space = {"optim.lr": Dimension(low=1e-4, high=1e-1, log=True)}
    create_study(file, StudySettings(space, SCORE, 1, 9, unpruned_trials=2, unpruned_epochs=1))
    for slot in ("x", "y", "z"):
        trial = start_trial(file, slot)
        for epoch in range(EPOCHS):
            trial.report(epoch, 2.0)
        trial.finish(pruned=False)
    return file


def states(file: Path) -> list[str]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    study = optuna.load_study(storage=storage, study_name="showtell")
    return [trial.state.name for trial in study.trials[3:]]


def fit(folder: Path, *killers: Callback, resume: bool = False, **changes: Any) -> None:
    """A training of the search beside its folder, or on with it."""
    if not resume:
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"format": 1}))
        start_trial(*study_and_slot({"study": None, "trial": 0}, folder.parent))
    (callback,) = trial_callbacks({"study": None, "trial": 0}, folder, monitor=SCORE)
    if killers:  # who is killed hears of no exception
        callback.on_exception = lambda *_: None  # type: ignore[method-assign]
    run = build_training(
        folder,
        callbacks=[*killers, callback],
        **{"trainer": {"max_epochs": EPOCHS}, "every_steps": None, **changes},
    )
    if not resume:
        run.fit()
        return
    checkpoint = folder / LAST_CHECKPOINT
    run.curves.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    run.fit(checkpoint)


def epochs(folder: Path) -> int:
    with (folder / "metrics.csv").open() as file:
        return sum(bool(row[SCORE]) for row in csv.DictReader(file))


def test_a_trial_below_the_others_is_stopped(study: Path) -> None:
    folder = study.parent / "run"
    fit(folder)
    assert epochs(folder) == 2  # the first is given to all
    assert states(study) == ["PRUNED"]
    assert read_record(folder)["pruned"].startswith("after epoch 2, val/BLEU-4 ")


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("on_validation_start", 1), ("on_train_epoch_end", 1), ("on_train_end", 2), ("on_fit_end", 2)],
)
def test_a_stopped_trial_that_is_killed_trains_no_further(
    study: Path, hook: str, epoch: int
) -> None:
    folder = study.parent / "run"
    with pytest.raises(KilledError):
        fit(folder, Killer(hook, epoch))
    assert states(study) == ["RUNNING"]
    fit(folder, resume=True)
    assert epochs(folder) == 2
    assert states(study) == ["PRUNED"]
    fit(folder, resume=True)  # it was killed again, while it was scored
    assert epochs(folder) == 2
    assert states(study) == ["PRUNED"]
    fit(folder, resume=True, trainer={"max_epochs": EPOCHS + 1})  # somebody wants to know
    assert epochs(folder) == EPOCHS + 1
    assert states(study) == ["PRUNED"]


def test_one_that_was_not_stopped_after_all_does_not_say_so(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study.parent / "run"
    with pytest.raises(KilledError):
        fit(folder, Killer("on_train_epoch_end", 1))
    assert "pruned" in read_record(folder)
    monkeypatch.setattr("showtell.search.Trial.report", lambda *_: False)
    fit(folder, resume=True)
    assert epochs(folder) == EPOCHS
    assert not read_record(folder)["pruned"]
    assert states(study) == ["COMPLETE"]


def test_a_diverged_trial_has_failed(study: Path) -> None:
    folder = study.parent / "run"
    with pytest.raises(UserError, match="The loss is "):
        fit(folder, optimization={"lr": 1e30, "gradient_clip": None})
    assert states(study) == ["FAIL"]


def test_an_interrupted_trial_has_not_failed(study: Path) -> None:
    folder = study.parent / "run"

    class Interrupt(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            raise SystemExit(143)

    run = build_training(folder, callbacks=[Interrupt()])
    (folder / "run.json").write_text(json.dumps({"format": 1}))
    trial = start_trial(*study_and_slot({"study": None, "trial": 0}, folder.parent))
    run.trainer.callbacks.append(PruneTrial(folder, trial, monitor=SCORE))  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        run.fit()
    assert states(study) == ["RUNNING"]


def test_patience_that_has_run_out_stays_so(tmp_path: Path) -> None:
    """Killed after its last epoch, while it was scored."""

    def fit(folder: Path, *, resume: bool = False, patience: int = 2) -> None:
        run = build_training(
            folder,
            optimization={"lr": 0.0},
            trainer={"max_epochs": 10},
            patience=patience,
            every_steps=None,
        )
        run.fit(folder / LAST_CHECKPOINT if resume else None)
        assert run.trainer.current_epoch == epochs(folder)  # by which results are dated

    fit(tmp_path)
    assert epochs(tmp_path) == 3
    fit(tmp_path, resume=True)
    assert epochs(tmp_path) == 3
    fit(tmp_path, resume=True, patience=4)
    assert epochs(tmp_path) == 5
