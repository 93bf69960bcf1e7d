"""What trainings and searches read of the stored features."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from showtell.parts import _PooledFeatures
from showtell.types import CaptionedImage


class Grids:
    """A feature source of grids (4, 3), each full of its position."""

    def __init__(self) -> None:
        self.read: list[weakref.ref[Any]] = []

    def index(self, image_ids: Sequence[str]) -> Any:
        return np.array([int(image_id) for image_id in image_ids])

    def gather(self, positions: Any) -> Any:
        assert all(before() is None for before in self.read), "read while earlier ones are kept"
        # In single precision, so that no copy stands between the grids and what is kept of them.
        grids = np.ones((len(positions), 4, 3), dtype=np.float32)
        grids *= positions[:, None, None]
        self.read.append(weakref.ref(grids))
        return grids


def test_the_grids_of_some_images_are_freed_before_the_next_are_read() -> None:
    images = [CaptionedImage(str(i), Path("none.jpg"), ("a dog",), None) for i in range(150)]
    source = Grids()
    chunks = list(_PooledFeatures(images, source))
    assert len(source.read) == len(chunks) == 3
    assert torch.equal(torch.cat(chunks), torch.arange(150.0).unsqueeze(1).expand(150, 3))
