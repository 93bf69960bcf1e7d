"""A signal at any moment of a training: it ends, and goes on as if it had never been asked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from small_training import build_training
from two_processes import in_two

from showtell.runs import BEST_WEIGHTS, LAST_CHECKPOINT
from showtell.training import ranks
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.interruption import SaveWhenAsked

# Before the step of any epoch, after it, in validation, and after the last; steps count from 0, and
# an epoch has 4.
MOMENTS = [
    ("on_train_batch_start", 4),
    ("on_train_batch_start", 6),
    ("on_train_batch_start", 7),
    ("on_train_batch_end", 8),
    ("on_train_batch_end", 6),
    ("on_validation_start", 8),
    ("on_validation_batch_start", 8),
    ("on_validation_end", 8),
    ("on_train_epoch_end", 12),
    ("on_train_end", 12),
]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A forked process has no use for threads; and signals are put back."""
    torch.set_num_threads(1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Ask(Callback):
    """Sends the own process a signal once, in one hook, after so many steps."""

    def __init__(self, hook: str, step: int, number: int) -> None:
        self._left = True

        def ask(trainer: Any, *_: Any) -> None:
            if self._left and trainer.global_step == step:
                self._left = False
                # Not os.kill, whose signal another thread may take, and later.
                signal.raise_signal(number)

        setattr(self, hook, ask)


def fit(folder: Path, *callbacks: Callback, resume: bool = False) -> None:
    run = build_training(folder, callbacks=callbacks, dropout=0.3, every_steps=None)
    checkpoint = folder / LAST_CHECKPOINT if resume else None
    if checkpoint is not None:
        run.curves.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    run.fit(checkpoint)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    fit(folder)
    return folder


def check_same(folder: Path, other: Path) -> None:
    for name in (BEST_WEIGHTS, "metrics.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(("hook", "step"), MOMENTS)
def test_a_training_asked_to_end_goes_on_exactly(
    tmp_path: Path, unbroken: Path, hook: str, step: int
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, Ask(hook, step, signal.SIGUSR1))
    assert ended.value.code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before
    saved = AtomicCheckpointIO().load_checkpoint(tmp_path / LAST_CHECKPOINT)["global_step"]
    assert saved in (step, step + 1, 7)  # 7: before the step that a validation follows
    fit(tmp_path, resume=True)
    check_same(tmp_path, unbroken)


def test_what_the_signal_did_before_comes_after_the_save(tmp_path: Path) -> None:
    saved = []

    def requeue(*_: Any) -> None:
        saved.append((tmp_path / LAST_CHECKPOINT).stat().st_size)
        raise SystemExit("queued again")

    signal.signal(signal.SIGTERM, requeue)
    with pytest.raises(SystemExit, match="queued again"):
        fit(tmp_path, Ask("on_train_batch_start", 1, signal.SIGTERM))
    assert saved[0] > 0
    assert signal.getsignal(signal.SIGTERM) is requeue


def test_two_processes_end_after_the_same_step(tmp_path: Path) -> None:
    def ask_one() -> int:
        asked = [Ask("on_train_batch_start", 1, signal.SIGTERM)] if ranks.rank() else []
        try:
            fit(tmp_path, *asked)
        except SystemExit as ended:
            return int(str(ended.code))
        return 0

    assert in_two(ask_one) == [143, 143]
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / LAST_CHECKPOINT)["global_step"] == 2


def test_of_two_signals_neither_is_lost_and_the_one_that_queues_again_comes_first(
    tmp_path: Path,
) -> None:
    """submitit's handler of SIGTERM does nothing; that of SIGUSR2 queues the job again and ends."""
    heard: list[int] = []
    both = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: heard.append(number)) for number in both]
    try:
        saver = SaveWhenAsked(tmp_path / "last.ckpt")
        saver._on_signal(signal.SIGUSR2, None)
        saver._on_signal(signal.SIGTERM, None)
        saver._handle_pending_signal()
        saver._handle_pending_signal()
    finally:
        for number, handler in zip(both, before, strict=True):
            signal.signal(number, handler)
    assert heard == [signal.SIGUSR2, signal.SIGTERM]
