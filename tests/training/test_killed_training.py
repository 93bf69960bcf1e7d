"""SIGKILL at random moments, again and again, and going on: the same bits as never killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from small_training import build_training, start_or_resume

from showtell.runs import BEST_WEIGHTS, LAST_CHECKPOINT
from showtell.training.checkpoints import AtomicCheckpointIO

PROGRAM = Path(__file__).with_name("small_training.py")
LONGEST_WAIT_SECONDS = 1.2


def kill_once(folder: Path, wait_seconds: float) -> bool:
    """Start or resume the training in a process of its own; whether the kill came in time."""
    command = [sys.executable, str(PROGRAM), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line in ("training\n", ""), line  # nothing at all when there was nothing left to do
        time.sleep(wait_seconds)
        process.kill()
    return process.returncode != 0


def check_kills(kills: int, tmp_path: Path) -> None:
    start_or_resume(tmp_path / "unbroken")
    moments = random.Random(kills)
    for attempt in range(kills):
        folder = tmp_path / f"killed{attempt // 4}"  # up to four kills of one training
        kill_once(folder, moments.uniform(0, LONGEST_WAIT_SECONDS))
    for folder in sorted(tmp_path.glob("killed*")):
        start_or_resume(folder)
        for name in ("metrics.csv", BEST_WEIGHTS):
            expected = (tmp_path / "unbroken" / name).read_bytes()
            assert (folder / name).read_bytes() == expected, f"{folder.name}/{name}"
        states = [
            AtomicCheckpointIO().load_checkpoint(f / LAST_CHECKPOINT)["state_dict"]
            for f in (folder, tmp_path / "unbroken")
        ]
        assert all(states[0][name].equal(states[1][name]) for name in states[1])


def test_killed_twice_is_unbroken(tmp_path: Path) -> None:
    check_kills(2, tmp_path)


STAGES = ("on_validation_start", "on_validation_end", "on_train_epoch_end", "on_train_epoch_start")


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_between_two_epochs_is_unbroken(tmp_path: Path, stage: str) -> None:
    class StoppedError(Exception):
        pass

    def stop(self: Callback, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise StoppedError

    build_training(tmp_path / "unbroken").fit()
    stopper = type("Stopper", (Callback,), {stage: stop})()
    with pytest.raises(StoppedError):
        build_training(tmp_path / "stopped", callbacks=[stopper]).fit()
    resumed = build_training(tmp_path / "stopped")
    checkpoint = tmp_path / "stopped" / LAST_CHECKPOINT
    resumed.curves.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    resumed.fit(checkpoint)
    for name in ("metrics.csv", BEST_WEIGHTS):
        expected = (tmp_path / "unbroken" / name).read_bytes()
        assert (tmp_path / "stopped" / name).read_bytes() == expected, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_is_unbroken(tmp_path: Path) -> None:
    check_kills(20, tmp_path)
