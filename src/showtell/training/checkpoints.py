"""The state of a training on disk: never torn, never code, and complete enough to go on exactly."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from showtell.errors import UserError
from showtell.files import remove_parts, write_atomically


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
    data loaders draw from generators of their own.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states now: ``cpu``, and ``cuda`` with one tensor per device."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch: what is set up before it may draw numbers."""
        self._loaded = state_dict

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the loaded states, once."""
        if self._loaded is None:
            return
        torch.set_rng_state(_on_cpu(self._loaded["cpu"]))
        cuda: list[Tensor] = self._loaded["cuda"]
        # A run may be resumed on fewer devices, or on none.
        for device, state in zip(range(torch.cuda.device_count()), cuda, strict=False):
            torch.cuda.set_rng_state(_on_cpu(state), device)
        self._loaded = None


def _on_cpu(state: Tensor) -> Tensor:
    """Generators take their state from the CPU, wherever Lightning has put it."""
    return state.cpu()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
