"""Batches of images with all their captions, in an order that can be continued anywhere.

Dimension key: B images, N captions (rows), T positions, P real positions, D feature size,
R regions.
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

# Images are shuffled, then sorted by caption length within pools of this many batches: rows of
# one batch get like lengths, and the pool is large enough that batches stay random.
POOL_BATCHES = 32


class FeatureSource(Protocol):
    """Where batches take image features from: the feature store, or an array in a test.

    Where the encoder learns too it gives pictures, as pixels (n, S, S, 3).
    """

    def index(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The position of each image."""
        ...

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Features (n, D) or (n, R, D), or pixels, at the given positions."""
        ...


# Epoch -> what is seen of the images in it, where that is another thing each time.
SourceOfEpoch = Callable[[int], FeatureSource]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images, each once, and all their captions for teacher forcing."""

    image_ids: tuple[str, ...]
    # (B, D) or (B, R, D), or pixels (B, S, S, 3), in float32; on their way to a GPU of the type
    # they came in, see `to`.
    features: Tensor
    tokens: Tensor  # (N, T) BEGIN and the words, padded with PAD: what the decoder reads
    targets: Tensor  # (P,) the words and END, row by row: what it should say
    lengths: Tensor  # (N,) real positions of each row; stays on the CPU, where packing needs it
    image_of_row: Tensor  # (N,) in 0..B-1
    # It counts nothing: an image that others have, for a process that got none of a short batch and
    # must take the step with them.
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
    """All captions of a split as one array of token ids: 4 bytes a token, however many images."""

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
        self.longest: npt.NDArray[np.int64] = longest  # per image, END counted

    def rows(self, image: int) -> list[npt.NDArray[np.int32]]:
        """The captions of one image: word ids and END."""
        first, last = self._image_starts[image : image + 2]
        bounds = self._row_starts[first : last + 1]
        return [self._tokens[a:b] for a, b in pairwise(bounds)]


class CaptionBatches:
    """An iterable over the batches of a split: one pass is one epoch, and it can be continued.

    Shuffled with ``seed`` and the epoch, so every epoch has its own order and a run that resumes
    in the middle of one sees exactly the batches that were left. Lightning saves and restores
    ``state_dict`` with the checkpoint.

    Where several processes train together each has its share of every batch, and all shares
    together are the batch of one process alone.

    Args:
        captions: those of the split.
        features: where the features of its images are, or where they are in each epoch.
        batch_size: images a batch, over all processes.
        shuffle_seed: None keeps the order of the split.
        limit_batches: only the first so many batches of an epoch; None for all.
        rank: the number of this process, from 0.
        world_size: how many processes share a batch.
        pinned: for a GPU: features stay as they came, half as much to copy or less, and memory is
            pinned, so that the host need not wait for it; `Batch.to` makes them float32 there.
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
        self._source_of(0).index(captions.image_ids)  # what is missing is told before the training
        self._batch_size = batch_size
        self._shuffle_seed = shuffle_seed
        self._limit_batches = limit_batches
        self._rank = rank
        self._world_size = world_size
        self._pinned = pinned
        self._epoch = 0
        self._next = 0  # the batch of this epoch that comes next

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

        # The next batch is read while this one is computed with: a disk answers late, and a GPU is
        # done before the file system is.
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(gather, order[self._next])
            while self._next < len(order):
                batch, features = order[self._next], ahead.result()
                self._next += 1  # before it leaves: a checkpoint taken during it counts it done
                if self._next < len(order):
                    ahead = reader.submit(gather, order[self._next])
                yield self._collate(batch, features)

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch, and how many of its batches were handed out."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position that ``state_dict`` gave.

        Raises:
            ValueError: when an epoch here has not so many batches.
        """
        if state["next"] > len(self):
            raise ValueError(f"batch {state['next']} of an epoch of {len(self)}")
        self._epoch, self._next = state["epoch"], state["next"]

    def _order(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The images of each batch of an epoch."""
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
        """The images of a batch that this process has, or the first where none is left for it.

        Not neighbours, which have captions of like length: the shares are the same work for all.
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
            # NumPy's own way to float32 takes 20 times as long.
            features=stored.pin_memory() if self._pinned else stored.float(),
            tokens=self._placed(torch.from_numpy(tokens)),
            targets=self._placed(torch.from_numpy(np.concatenate(rows).astype(np.int64))),
            lengths=lengths,
            image_of_row=self._placed(torch.repeat_interleave(torch.tensor(captions_per_image))),
            is_filler=self._rank >= len(batch),
        )

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._pinned else tensor
