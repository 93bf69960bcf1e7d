"""Mini-batches of images with all their captions, resumable in the middle of an epoch.

Dimension key: B images, N captions (rows), T positions, P real (unpadded) positions, D feature
size, R regions, S input side in pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import BEGIN, END, PAD, Vocabulary
from showtell.types import CaptionedImage

# Images are shuffled, then sorted by caption length within pools of this many batches: that bounds
# the padding, and a pool is large enough to keep batches random.
POOL_BATCHES = 32


class FeatureSource(Protocol):
    """Where batches get image features from: the feature store, or an array in a test.

    While the encoder is fine-tuned, sources give pixels (n, S, S, 3) instead.
    """

    def index(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The position of each image: int64, one row for each."""
        ...

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Features (n, D) or (n, R, D), or pixels, at the given positions."""
        ...


# Epoch -> source, where each epoch has its own views or crops.
SourceOfEpoch = Callable[[int], FeatureSource]


@dataclass(frozen=True, slots=True)
class Batch:
    """A mini-batch: some images, each once, and all their captions for teacher forcing."""

    image_ids: tuple[str, ...]
    # (B, D) or (B, R, D), or pixels (B, S, S, 3), in float32; pinned ones, for a GPU, have the type
    # of their source until `to`.
    features: Tensor
    tokens: Tensor  # (N, T) decoder input: BEGIN and the words, padded with PAD
    targets: Tensor  # (P,) the words and END, row by row, without padding
    lengths: Tensor  # (N,) real positions of each row; on the CPU, where positions are computed
    image_of_row: Tensor  # (N,) the image of each caption, in 0..B-1
    # A process for which a short batch has no image gets one of another process, because all must
    # take the step together; it has weight 0.
    is_filler: bool = False

    def to(self, device: torch.device) -> Batch:
        """The same batch with all but ``lengths`` on ``device``, the features in float32."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=True).float(),
            tokens=self.tokens.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            image_of_row=self.image_of_row.to(device, non_blocking=True),
        )


class EncodedCaptions:
    """All captions of a split as one int32 array of token ids, 4 bytes per token."""

    def __init__(self, images: Sequence[CaptionedImage], vocabulary: Vocabulary) -> None:
        self.image_ids = tuple(image.image_id for image in images)
        tokens, row_ends = array("i"), array("q", [0])
        for caption in (caption for image in images for caption in image.captions):
            tokens.extend(vocabulary.encode(tokenize(caption)))
            tokens.append(END)
            row_ends.append(len(tokens))
        self._tokens = np.array(tokens, dtype=np.int32)
        self._row_starts = np.array(row_ends, dtype=np.int64)
        self._image_starts = np.cumsum([0, *(len(image.captions) for image in images)])
        longest = np.maximum.reduceat(np.diff(self._row_starts), self._image_starts[:-1])
        self.longest: npt.NDArray[np.int64] = longest  # per image, with END

    def rows(self, image: int) -> list[npt.NDArray[np.int32]]:
        """The captions of one image, each as word ids and END."""
        first, last = self._image_starts[image : image + 2]
        bounds = self._row_starts[first : last + 1]
        return [self._tokens[a:b] for a, b in pairwise(bounds)]


class CaptionBatches:
    """An iterable over the batches of a split; one pass is one epoch.

    The order depends on ``shuffle_seed`` and the epoch, so every epoch has its own, and a run
    resumed in the middle of an epoch sees exactly the remaining batches. Lightning saves and
    restores ``state_dict`` with the checkpoint.

    In distributed training each process gets a share of every batch; the shares add up to the batch
    of a single process.

    Args:
        captions: the captions of the split.
        features: the source of its images' features, or a function from an epoch to its source.
        batch_size: images per batch, over all processes.
        shuffle_seed: None keeps the order of the split.
        limit_batches: use only the first so many batches of each epoch; None for all.
        rank: the index of this process, from 0.
        world_size: the number of processes.
        pinned: for a GPU: tensors are in pinned memory, so that copies are asynchronous, and
            features keep their stored type, half as much to copy or less; `Batch.to` converts them
            to float32 on the device.
    """

    def __init__(
        self,
        captions: EncodedCaptions,
        features: FeatureSource | SourceOfEpoch,
        *,
        batch_size: int,
        shuffle_seed: int | None,
        limit_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pinned: bool = False,
    ) -> None:
        self._captions = captions
        self._source_of: SourceOfEpoch = features if callable(features) else lambda epoch: features
        self._source_of(0).index(captions.image_ids)  # reports missing images before the training
        self._batch_size = batch_size
        self._shuffle_seed = shuffle_seed
        self._limit_batches = limit_batches
        self._rank = rank
        self._world_size = world_size
        self._pinned = pinned
        self._epoch = 0
        self._next = 0  # index of the next batch in this epoch

    def __len__(self) -> int:
        batches = -(-len(self._captions.image_ids) // self._batch_size)
        return batches if self._limit_batches is None else min(batches, self._limit_batches)

    def __iter__(self) -> Iterator[Batch]:
        if self._next == len(self):
            self._epoch, self._next = self._epoch + 1, 0
        order = self._order(self._epoch)[: len(self)]
        source = self._source_of(self._epoch)
        positions = source.index(self._captions.image_ids)

        def gather(batch: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
            return source.gather(positions[self._share(batch)])

        # The next batch is read while this one is in use: disks have latency, and a GPU is faster
        # than the file system.
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(gather, order[self._next])
            while self._next < len(order):
                batch, features = order[self._next], ahead.result()
                self._next += 1  # first: a checkpoint taken while it is used counts it as done
                if self._next < len(order):
                    ahead = reader.submit(gather, order[self._next])
                yield self._collate(batch, features)

    def state_dict(self) -> dict[str, Any]:
        """The position: the epoch and how many of its batches were handed out."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position from ``state_dict``.

        Raises:
            ValueError: epochs here have fewer batches than that.
        """
        if state["next"] > len(self):
            raise ValueError(f"batch {state['next']} of an epoch of {len(self)}")
        self._epoch, self._next = state["epoch"], state["next"]

    def _order(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The image indices of each batch of an epoch."""
        images = np.arange(len(self._captions.image_ids))
        if self._shuffle_seed is None:
            return [images[i : i + self._batch_size] for i in self._starts(images)]
        random = np.random.default_rng((self._shuffle_seed, epoch))
        images = random.permutation(images)
        pool = POOL_BATCHES * self._batch_size
        pools = [images[i : i + pool] for i in range(0, len(images), pool)]
        images = np.concatenate(
            [p[np.argsort(self._captions.longest[p], kind="stable")] for p in pools]
        )
        batches = [images[i : i + self._batch_size] for i in self._starts(images)]
        return [batches[i] for i in random.permutation(len(batches))]

    def _share(self, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This process's images of a batch, or the batch's first if it has none.

        Every ``world_size``-th image, because neighbours have captions of similar length: so all
        processes get the same amount of work.
        """
        share = batch[self._rank :: self._world_size]
        return share if len(share) else batch[:1]

    def _starts(self, images: npt.NDArray[np.int64]) -> range:
        return range(0, len(images), self._batch_size)

    def _collate(self, batch: npt.NDArray[np.int64], features: npt.NDArray[Any]) -> Batch:
        images = self._share(batch)
        rows_of_image = [self._captions.rows(image) for image in images]
        rows = [row for rows in rows_of_image for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = np.full((len(rows), int(lengths.max())), PAD, dtype=np.int64)
        tokens[:, 0] = BEGIN
        for row, words_and_end in zip(tokens, rows, strict=True):
            row[1 : len(words_and_end)] = words_and_end[:-1]
        captions_per_image = [len(rows) for rows in rows_of_image]
        stored = torch.from_numpy(features)
        return Batch(
            image_ids=tuple(self._captions.image_ids[i] for i in images),
            # NumPy's conversion to float32 takes 20 times as long.
            features=stored.pin_memory() if self._pinned else stored.float(),
            tokens=self._placed(torch.from_numpy(tokens)),
            targets=self._placed(torch.from_numpy(np.concatenate(rows).astype(np.int64))),
            lengths=lengths,
            image_of_row=self._placed(torch.repeat_interleave(torch.tensor(captions_per_image))),
            is_filler=self._rank >= len(batch),
        )

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._pinned else tensor
