"""Feature sources without a store: pixels, for an encoder in training, or features made on demand.

Shapes: ``n`` images, ``S`` input side in pixels, ``R`` regions, ``D`` feature size.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from showtell.cores import available_cores
from showtell.types import CaptionedImage, FeatureKind
from showtell.vision.encoder import Encoder
from showtell.vision.extract import encode
from showtell.vision.features import Features
from showtell.vision.images import ImageError, Preprocessing, load_image


class PixelSource:
    """A source of pixels, decoded on demand.

    With a ``seed`` each picture is cropped at random (``Preprocessing.random_crop``), depending
    only on the seed, the epoch and its place in ``images``; without one it gets the usual view.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        preprocessing: Preprocessing,
        seed: int | None,
        epoch: int = 0,
    ) -> None:
        self._images = images
        self._preprocessing = preprocessing
        self._seed = seed
        self._epoch = epoch

    def index(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The place of each image in ``images``, int64 (n,)."""
        return _places(self._images, image_ids)

    def gather(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels (n, S, S, 3), uint8, of the images at the given places.

        Raises:
            ImageError: the first picture that cannot be read.
        """
        with ThreadPoolExecutor(available_cores()) as threads:
            return np.stack(list(threads.map(self._pixels, positions.tolist())))

    def _pixels(self, place: int) -> NDArray[np.uint8]:
        image = load_image(self._images[place].path)
        if self._seed is None:
            return self._preprocessing.pixels(image)
        random = np.random.default_rng((self._seed, self._epoch, place))
        return self._preprocessing.random_crop(image, random)


class OnTheFlyFeatures:
    """A source of features computed on demand by ``encoder``, which may change between calls.

    ``encoder`` must be set before the first ``gather``.
    """

    encoder: Encoder

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        kind: FeatureKind,
        *,
        views: Sequence[str],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._images = images
        self._kind = kind
        self._views = views
        self._batch_size = batch_size
        self._device = device

    def index(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The place of each image in ``images``, int64 (n,)."""
        return _places(self._images, image_ids)

    def gather(self, positions: NDArray[np.int64]) -> Features:
        """Features (n, D) or (n, views x R, D), rounded as in a store.

        Raises:
            ImageError: the first picture that cannot be read.
        """
        encoded = encode(
            [self._images[place].path for place in positions],
            self.encoder,
            kind=self._kind,
            batch_size=self._batch_size,
            device=self._device,
            views=self._views,
        )
        rows = []
        for entry in encoded:
            if isinstance(entry, ImageError):
                raise entry
            rows.append(entry)
        return np.stack(rows)


def check_readable(images: Sequence[CaptionedImage]) -> None:
    """Decode every picture once, so that a damaged one does not end a training midway.

    Raises:
        ImageError: the first picture that cannot be read.
    """
    with ThreadPoolExecutor(available_cores()) as threads:
        for _ in threads.map(lambda image: load_image(image.path).size, images):
            pass


def _places(images: Sequence[CaptionedImage], image_ids: Sequence[str]) -> NDArray[np.int64]:
    place = {image.image_id: number for number, image in enumerate(images)}
    return np.array([place[image_id] for image_id in image_ids])
