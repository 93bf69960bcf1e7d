from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from showtell.errors import UserError
from showtell.training.checkpoints import AtomicCheckpointIO, RandomStates

IO = AtomicCheckpointIO()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    IO.save_checkpoint({"weights": torch.arange(3), "epoch": 2, "note": "x"}, path)
    loaded = IO.load_checkpoint(path)
    assert loaded["weights"].tolist() == [0, 1, 2]
    assert (loaded["epoch"], loaded["note"]) == (2, "x")
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    IO.remove_checkpoint(path)
    IO.remove_checkpoint(path)
    assert not path.exists()


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint({"epoch": 1}, path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"last.ckpt cannot be written .*No space left"):
        IO.save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert IO.load_checkpoint(path) == {"epoch": 1}
    assert len(list(tmp_path.iterdir())) == 1


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("weights_only", [None, False, True])
def test_code_in_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_only: bool | None
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.ones(1), "evil": Code()}, "zip.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps(Code()))
    for name in ("zip.ckpt", "plain.ckpt"):
        with pytest.raises(UserError, match=rf"{name} holds more than tensors"):
            IO.load_checkpoint(name, weights_only=weights_only)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_damaged_checkpoints_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint({"weights": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=r"last.ckpt"):
        IO.load_checkpoint(path)
    with pytest.raises(UserError, match=r"absent.ckpt cannot be read"):
        IO.load_checkpoint(tmp_path / "absent.ckpt")


def save_for_ever(path: Path, started: Any) -> None:
    number = 0
    while True:
        IO.save_checkpoint({"numbers": torch.full((200_000,), number)}, path)
        started.set()
        number += 1


def test_sigkill_during_a_save_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    context = multiprocessing.get_context("fork")
    for attempt in range(8):
        started = context.Event()
        writer = context.Process(target=save_for_ever, args=(path, started))
        writer.start()
        assert started.wait(timeout=30)
        time.sleep(attempt / 500)  # each time at another point of the saves that follow
        writer.kill()
        writer.join()
        numbers = IO.load_checkpoint(path)["numbers"]
        assert numbers.shape == (200_000,)
        assert len(numbers.unique()) == 1
    # What the killed saves left beside the target is taken over by the next.
    IO.save_checkpoint({"epoch": 1}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


class Dropping(LightningModule):
    """A layer behind dropout, whose weights depend on every random number drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder: Path, *, steps: int, save_every: int, resume: bool = False) -> Tensor:
    torch.manual_seed(99 if resume else 7)
    module = Dropping()
    saver = ModelCheckpoint(
        dirpath=folder, every_n_train_steps=save_every, save_last=True, save_top_k=0
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RandomStates(), saver],
    )
    # Equal batches: this is about the random numbers, not about the position in the epoch.
    loader: DataLoader[Any] = DataLoader([torch.arange(8.0)] * 8, batch_size=2)  # type: ignore[arg-type]
    loader.generator = torch.Generator()
    trainer.fit(module, loader, ckpt_path=folder / "last.ckpt" if resume else None)
    return module.net[1].weight.detach().clone()


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
@pytest.mark.parametrize("save_every", [3, 4])  # within an epoch of four steps, and at its end
def test_a_resumed_training_is_bit_identical(tmp_path: Path, save_every: int) -> None:
    unbroken = fit(tmp_path / "unbroken", steps=10, save_every=save_every)
    fit(tmp_path / "broken", steps=7, save_every=save_every)
    resumed = fit(tmp_path / "broken", steps=10, save_every=save_every, resume=True)
    assert torch.equal(unbroken, resumed)
