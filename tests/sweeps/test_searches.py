"""Searches of real, small trainings: bad trials, diverged ones, a driver that is killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Smoke

from showtell.runs import LAST_CHECKPOINT

optuna = pytest.importorskip("optuna")
PROGRAM = Path(__file__).parents[2] / "train.py"
SCORE = "val/BLEU-1"  # after so little training the others are 0


def command(smoke: Smoke, root: Path, *words: str) -> list[str]:
    settings = ("random_trials=2", "unpruned_trials=1", "unpruned_epochs=1")
    return [
        *(sys.executable, str(PROGRAM), *smoke.overrides, "sweep=optuna", f"output.root={root}"),
        *(f"callbacks.monitor={SCORE}", "trainer.max_epochs=6"),
        *(f"hydra.sweeper.{setting}" for setting in settings),
        *words,
    ]


def trials(root: Path) -> list[Any]:
    (file,) = root.glob("*/study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    return list(optuna.load_study(storage=storage, study_name="showtell").trials)


def check_run(trial: Any) -> None:
    """The run of a trial has its values, and every epoch that it was given once."""
    slot = Path(trial.user_attrs["slot"])
    (folder,) = slot.parent.glob(f"{int(slot.name.split()[-1]):04}_*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["optim"]["lr"] == pytest.approx(trial.params["optim.lr"])
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert bool(record.get("pruned")) == (trial.state.name == "PRUNED")
    with (folder / "metrics.csv").open() as file:
        scores = [(int(row["epoch"]), row[SCORE]) for row in csv.DictReader(file) if row[SCORE]]
    assert {epoch: float(score) for epoch, score in scores} == pytest.approx(
        trial.intermediate_values
    )
    assert [epoch for epoch, _ in scores] == list(range(len(scores)))
    assert (len(scores) < 6) <= (trial.state.name == "PRUNED")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bad_trials_of_a_real_search_are_stopped(smoke: Smoke, tmp_path: Path) -> None:
    words = ("hydra.sweeper.trials=6", "hydra.launcher.cpu_slots=1")
    search = command(smoke, tmp_path, *words, "optim.lr=1e-2,1e-8")
    ended = subprocess.run(search, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = trials(tmp_path)
    assert len(found) == 6
    assert {trial.state.name for trial in found} == {"COMPLETE", "PRUNED"}
    for trial in found:
        trial.params["optim.lr"] = float(trial.params["optim.lr"])
        check_run(trial)
    assert (1e-8, "PRUNED") in {(t.params["optim.lr"], t.state.name) for t in found}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_diverged_trials_of_a_real_search_have_failed(smoke: Smoke, tmp_path: Path) -> None:
    words = ("hydra.sweeper.trials=2", "hydra.launcher.cpu_slots=1", "optim.gradient_clip=null")
    search = command(smoke, tmp_path, *words, "optim.lr=1e30,1e31", "trainer.max_epochs=1")
    ended = subprocess.run(search, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: 2 of 2 jobs failed")
    assert ended.stdout.count("FAILED") == 2
    assert "search: 0 trials trained to the end, 0 stopped early, 0 not ended, 2 failed" in (
        ended.stdout
    )
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "FAIL"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_whose_driver_is_killed_loses_no_trial_and_runs_none_twice(
    smoke: Smoke, tmp_path: Path
) -> None:
    words = ("hydra.sweeper.trials=6", "hydra.launcher.cpu_slots=2")
    search = command(smoke, tmp_path / "runs", *words, "optim.lr=tag(log,interval(1e-8,1e-2))")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    moments = random.Random(0)
    for kill in range(1, 6):
        with subprocess.Popen(search, stdout=subprocess.DEVNULL, env=environment) as driver:
            # In the first trials, while they are scored, and between two.
            while len(list(tmp_path.glob(f"runs/*/*/{LAST_CHECKPOINT}"))) < kill:
                assert driver.poll() is None
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 3))
            driver.send_signal(signal.SIGKILL)
    ended = subprocess.run(search, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = [trial for trial in trials(tmp_path / "runs") if "slot" in trial.user_attrs]
    slots = Counter(Path(trial.user_attrs["slot"]).name for trial in found)
    assert slots == {f"trial {number}": 1 for number in range(6)}
    assert {trial.state.name for trial in found} <= {"COMPLETE", "PRUNED"}
    for trial in found:
        check_run(trial)
    (record,) = tmp_path.glob("runs/*/sweep.json")
    jobs = json.loads(record.read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["finished"] * 6
