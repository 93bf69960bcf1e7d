"""Checkpoints: written atomically, read without running code, complete enough to resume exactly."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from showtell.errors import UserError
from showtell.files import remove_parts, write_atomically
from showtell.training.ranks import gathered, rank


class AtomicCheckpointIO(CheckpointIO):
    """Reads and writes Lightning checkpoints so that a kill leaves the old file or the new one.

    Lightning's own atomic save first writes to the system's temporary folder. If that is on another
    disk, the final move is a copy, which can be torn.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Replace ``path`` by the checkpoint.

        Raises:
            UserError: the disk is full or not writable; what ``path`` held before is intact.
        """
        target = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        remove_parts(target)
        write_atomically(target, buffer.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values; never run code, whatever ``weights_only`` says.

        Raises:
            UserError: the file is missing, damaged, or holds more than tensors and plain values.
        """
        try:
            # On the CPU a checkpoint of a GPU loads anywhere; Lightning moves the state itself.
            content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors and plain values, or is damaged, and was not "
                f"loaded: resume from a checkpoint that this project wrote"
            ) from error
        except Exception as error:  # damaged bytes can raise anything
            raise UserError(
                f"{path} cannot be read as a checkpoint ({_first_line(error)}): resume from "
                f"another, or start the run anew"
            ) from error
        return dict(content)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file if it exists."""
        Path(path).unlink(missing_ok=True)


class RandomStates(Callback):
    """Saves and restores the states of PyTorch's random generators, which dropout draws from.

    On one device a resumed training is then bit-identical to an uninterrupted one, provided that
    the data loaders draw from generators of their own. Every rank has its own random sequence.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The current states: ``cpu`` and ``cuda`` of rank 0, and ``others`` of ranks 1 and up.

        All processes must call it.
        """
        first, *others = gathered(_random_states())
        return {**first, "others": others}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the states until the first batch, because the setup before it may draw numbers."""
        states = [state_dict, *state_dict["others"]] if rank() else [state_dict]
        # A run may be resumed by more processes than it had.
        self._loaded = states[rank()] if rank() < len(states) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reseed every rank but 0, because Lightning seeds all ranks alike."""
        if rank():
            mixed = np.random.SeedSequence([torch.initial_seed(), rank()])
            torch.manual_seed(int(mixed.generate_state(1)[0]))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the loaded states before the first batch."""
        if self._loaded is None:
            return
        torch.set_rng_state(_on_cpu(self._loaded["cpu"]))
        # A run may be resumed on fewer devices, or on none.
        if self._loaded["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(_on_cpu(self._loaded["cuda"][0]))
        self._loaded = None


def _random_states() -> dict[str, Any]:
    """The random states of the CPU and, if there is one, of this process's current GPU."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _on_cpu(state: Tensor) -> Tensor:
    """``state`` on the CPU, where generators expect it; Lightning may have moved it."""
    return state.cpu()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
