"""The plain loop gives the features that ours stores, so the two may be compared in time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from showtell.config import build, compose
from showtell.vision.extract import ensure_features

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from extraction import PlainEncoder, eager, find, resized


def test_the_plain_loop_gives_the_features_that_are_stored(tmp_path: Path) -> None:
    pictures = find(None, 20, tmp_path)
    assert len(pictures) == 20
    encoder = build("encoder", compose(["encoder=efficientnet_lite0"])["encoder"])
    device = torch.device("cpu")
    stores = ensure_features(
        [(path.name, path) for path in pictures],
        encoder,
        ["grid"],
        root=tmp_path / "store",
        batch_size=4,
        device=device,
        progress=False,
    )
    stored = stores["grid"].gather(stores["grid"].index([path.name for path in pictures[:5]]))
    for network, size in ((PlainEncoder(encoder), 1), (PlainEncoder(encoder), 3), (encoder, 3)):
        plain = eager(network, pictures[:5], size, device)
        assert list(plain) == pictures[:5]
        difference = np.stack(list(plain.values())).astype(np.float32) - stored
        assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(stored.astype(np.float32))


def test_pictures_are_made_in_the_size_that_is_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (file,) = resized([tmp_path / "a.png"], 500, tmp_path / "500")
    assert Image.open(file).size == (500, 375)
    assert Image.open(file).format == "JPEG"
