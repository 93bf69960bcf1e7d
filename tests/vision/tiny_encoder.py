"""An encoder small enough to build features with in milliseconds, always with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from showtell.vision.encoder import Encoder
from showtell.vision.images import Preprocessing
from showtell.vision.weights import digest

PREPROCESSING = Preprocessing(16, "whole", 1, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def tiny_encoder(seed: int = 0) -> Encoder:
    """A grid of 2 x 2 regions with 6 values each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(3, 6, kernel_size=8, stride=8), nn.BatchNorm2d(6), nn.ReLU())
    weights = digest(body)
    return Encoder(body, network="tiny", weights=weights, preprocessing=PREPROCESSING)


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[tuple[str, Path]]:
    """Random pictures, as (id, file), in an order other than the sorted one."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    images = []
    for number in reversed(range(count)):
        path = folder / f"{number:03}.png"
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        images.append((path.name, path))
    return images
