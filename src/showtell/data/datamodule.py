"""The LightningDataModule: batches of captioned images and their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from showtell.data.batches import (
    Batch,
    CaptionBatches,
    EncodedCaptions,
    FeatureSource,
    SourceOfEpoch,
)
from showtell.text.vocabulary import Vocabulary
from showtell.types import CaptionedImage, Split

# Images captioned at a time in validation. With three beams that is exactly one full group of the
# search on a CPU, without a remainder.
VALIDATION_BATCH = 256


class CaptionDataModule(LightningDataModule):
    """Training and validation batches.

    No worker processes are needed: gathering stored features takes well under a millisecond per
    batch, and pictures are decoded in threads.
    """

    def __init__(
        self,
        images: Mapping[Split, Sequence[CaptionedImage]],
        features: FeatureSource,
        vocabulary: Vocabulary,
        *,
        batch_size: int,
        seed: int,
        training: SourceOfEpoch | None = None,
        validation: FeatureSource | None = None,
        limit_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pinned: bool = False,
    ) -> None:
        """Make batches of ``images``; see `CaptionBatches` for the other arguments.

        ``features`` is the source for all images. ``training`` replaces it for the training images,
        with a source for each epoch, and ``validation`` for the validation images.
        """
        super().__init__()
        self._images = images
        self._training = features if training is None else training
        self._vocabulary = vocabulary
        self._batch_size = batch_size
        self._seed = seed
        self._validation = features if validation is None else validation
        self._limit_batches = limit_batches
        self._rank = rank
        self._world_size = world_size
        self._pinned = pinned

    @cached_property
    def train_batches(self) -> CaptionBatches:
        """The training split, reshuffled every epoch."""
        return self._batches(
            self._images["train"],
            self._training,
            batch_size=self._batch_size,
            shuffle_seed=self._seed,
        )

    def train_dataloader(self) -> CaptionBatches:
        """`train_batches`: the same object at every call, because it holds the position."""
        return self.train_batches

    def val_dataloader(self) -> CaptionBatches:
        """The validation split in file order, each image with only its first caption.

        The captions serve the loss alone. Using all five would cost more than generating captions
        for the images and tell little more, since they describe the same images.
        """
        images = [replace(image, captions=image.captions[:1]) for image in self._images["val"]]
        return self._batches(
            images, self._validation, batch_size=VALIDATION_BATCH, shuffle_seed=None
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch to ``device``, except for the row lengths."""
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The position in the training batches.

        Kept here because Lightning restores a loader's own state only when it resumes within an
        epoch, but a data module's always.
        """
        return self.train_batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training batches at a saved position."""
        self.train_batches.load_state_dict(state_dict)

    def _batches(
        self,
        images: Sequence[CaptionedImage],
        features: FeatureSource | SourceOfEpoch,
        *,
        batch_size: int,
        shuffle_seed: int | None,
    ) -> CaptionBatches:
        return CaptionBatches(
            EncodedCaptions(images, self._vocabulary),
            features,
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            limit_batches=self._limit_batches,
            rank=self._rank,
            world_size=self._world_size,
            pinned=self._pinned,
        )
