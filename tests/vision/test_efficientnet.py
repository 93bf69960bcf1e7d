"""EfficientNet-Lite, equal to timm's in names, shapes and every bit of its output."""

from __future__ import annotations

import pytest
import timm
import torch

from showtell.vision.efficientnet import EfficientNetLite


@pytest.mark.parametrize(("size", "side"), [(0, 64), (1, 97), (2, 130)])
def test_the_network_is_that_of_timm(size: int, side: int) -> None:
    torch.manual_seed(size)
    theirs = timm.create_model(f"tf_efficientnet_lite{size}", pretrained=False).eval()
    for tensor in theirs.state_dict().values():
        if tensor.dim() == 1:  # the initial norms are the identity and would hide a lot
            tensor.add_(torch.rand(tensor.shape))
    ours = EfficientNetLite(size).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        feature_map = ours(images)
        assert feature_map.shape == (2, 1280, -(-side // 32), -(-side // 32))
        assert torch.equal(feature_map, theirs.forward_features(images))
        assert torch.equal(
            ours.classifier(feature_map.mean(dim=(2, 3))),
            theirs.classifier(theirs.global_pool(feature_map)),
        )
    assert feature_map.std() > 0


def test_cut_anywhere_it_is_the_same_network() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite(0).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = network(images)
        for stages in range(8):
            assert torch.equal(network.upper(network.lower(images, stages), stages), whole)
    parts = [id(p) for part in network.upper_parts(5) for p in part.parameters()]
    network.requires_grad_(True)
    network.upper(network.lower(images, 5).detach(), 5).sum().backward()
    learned = [id(p) for p in network.parameters() if p.grad is not None]
    assert sorted(parts) == sorted(learned) and len(parts) < len(list(network.parameters()))
