"""The state of a training on disk: never torn, never code, and complete enough to go on exactly."""

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

    Lightning's own atomic save stages in the temporary folder, which may be another disk, where
    moving means copying.
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
        """Read tensors and plain values; whatever ``weights_only`` says, never run code.

        Raises:
            UserError: the file is missing, damaged, or holds more than tensors and plain values.
        """
        try:
            # Lightning moves what belongs on a device there; a checkpoint of a GPU loads anywhere.
            content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors and plain values, or is damaged, and was not "
                f"loaded: resume from a checkpoint that this project wrote"
            ) from error
        except Exception as error:  # bytes that are no checkpoint raise whatever they happen to
            raise UserError(
                f"{path} cannot be read as a checkpoint ({_first_line(error)}): resume from "
                f"another, or start the run anew"
            ) from error
        return dict(content)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file, which may be gone."""
        Path(path).unlink(missing_ok=True)


class RandomStates(Callback):
    """Saves the states of PyTorch's random generators, so that dropout goes on where it was.

    On one device a resumed training is then bit-identical to an unbroken one, provided that the
    data loaders draw from generators of their own. Each of several processes draws its own numbers.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states now, ``cpu`` and ``cuda``, and those of the ``others``, by rank from 1.

        All processes must call it.
        """
        first, *others = gathered(_random_states())
        return {**first, "others": others}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch: what is set up before it may draw numbers."""
        states = [state_dict, *state_dict["others"]] if rank() else [state_dict]
        # A run may be resumed by more processes than it had.
        self._loaded = states[rank()] if rank() < len(states) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up another sequence of numbers than rank 0; Lightning gives all the same seed."""
        if rank():
            mixed = np.random.SeedSequence([torch.initial_seed(), rank()])
            torch.manual_seed(int(mixed.generate_state(1)[0]))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the loaded states, once."""
        if self._loaded is None:
            return
        torch.set_rng_state(_on_cpu(self._loaded["cpu"]))
        # A run may be resumed on fewer devices, or on none.
        if self._loaded["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(_on_cpu(self._loaded["cuda"][0]))
        self._loaded = None


def _random_states() -> dict[str, Any]:
    """Of the processor, and of the GPU that this process computes on, if it does."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _on_cpu(state: Tensor) -> Tensor:
    """Generators take their state from the CPU, wherever Lightning has put it."""
    return state.cpu()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
