"""The LightningDataModule: captioned images and their stored features, as batches."""

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

# Images decoded at a time in validation: with three beams one full group of the search on a CPU,
# and not one and a rest.
VALIDATION_BATCH = 256


class CaptionDataModule(LightningDataModule):
    """Batches of training and validation.

    Needs no worker process: a batch of stored features takes well under a millisecond to gather,
    and pictures are decoded in threads.
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
        """Make batches of ``images``.

        ``features`` are those of all images; ``training`` is what is seen of the training images
        in each epoch, and ``validation`` of the validation images, where it is not ``features``.
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
        """The training split, shuffled anew every epoch."""
        return self._batches(
            self._images["train"],
            self._training,
            batch_size=self._batch_size,
            shuffle_seed=self._seed,
        )

    def train_dataloader(self) -> CaptionBatches:
        """The same object at every call: it carries the position in the epoch."""
        return self.train_batches

    def val_dataloader(self) -> CaptionBatches:
        """The validation split in file order, each image with the first of its captions.

        They are there for the loss alone. That of all five references would cost more than to
        write captions for the images, and tells little more: they speak of the same images.
        """
        images = [replace(image, captions=image.captions[:1]) for image in self._images["val"]]
        return self._batches(
            images, self._validation, batch_size=VALIDATION_BATCH, shuffle_seed=None
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move what the device computes with; row lengths stay on the CPU."""
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of the training images.

        Lightning restores the loader's own state only when it resumes inside an epoch; this one
        it restores always.
        """
        return self.train_batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position."""
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
