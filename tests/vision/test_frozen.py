"""The frozen part of a network gives what the network gives, without gradients."""

from __future__ import annotations

from functools import partial

import torch

from showtell.vision.efficientnet import EfficientNetLite
from showtell.vision.frozen import frozen


def test_it_equals_the_network_for_every_picture_of_a_batch() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite(0).eval().requires_grad_(False)
    lower = partial(network.lower, stages=4)
    images = torch.randn(3, 3, 64, 64)
    maps = frozen(lower, images[:1])(images)
    assert not maps.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(maps, lower(images), atol=1e-4, rtol=1e-4)
