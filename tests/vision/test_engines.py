"""Engines: the eager encoder's features, whoever computes them, and nothing sent to anyone."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from tiny_encoder import tiny_encoder
from torch import nn

from showtell.vision import engines
from showtell.vision.encoder import Encoder, efficientnet_lite, torchvision_encoder
from showtell.vision.engines import OpenVINOEngine, TorchEngine, compiled_for_cpu, engine_for
from showtell.vision.images import Preprocessing

CPU = torch.device("cpu")
MANY = engines.CONVERT_FROM_IMAGES
KINDS = ("pooled", "grid")


def rule(size: int) -> Preprocessing:
    return Preprocessing(size, "whole", 1, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def picture(size: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def batch_of(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures))


def eager_engine(encoder: Encoder, batch_size: int, device: torch.device = CPU) -> TorchEngine:
    return TorchEngine(encoder, encoder.preprocessing, batch_size, device, torch.float32)


def lite0(folder: Path) -> Encoder:
    return efficientnet_lite(size=0, weights=None, preprocessing=rule(224))


def random_network(name: str, size: int, folder: Path) -> Encoder:
    """Random weights; the batch statistics of noise keep its values in float16's range."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = torchvision.models.get_model(name, weights=None)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.randn(2, 3, size, size))
    file = folder / f"{name}.pth"
    torch.save(model.state_dict(), file)
    return torchvision_encoder(network=name, weights=str(file), preprocessing=rule(size))


@pytest.mark.parametrize(
    "build",
    [
        lite0,
        lambda folder: random_network("resnet18", 96, folder),
        pytest.param(
            lambda folder: random_network("inception_v3", 299, folder), marks=pytest.mark.slow
        ),
        pytest.param(lambda folder: random_network("swin_t", 224, folder), marks=pytest.mark.slow),
    ],
)
def test_openvino_gives_the_eager_features(tmp_path: Path, build) -> None:
    encoder = build(tmp_path)
    image = picture(encoder.preprocessing.size)
    ours = OpenVINOEngine(encoder, threads=1)(image, KINDS)
    reference = encoder(encoder.preprocessing.normalised(image)[None])
    for kind in KINDS:
        expected = getattr(reference, kind)[0].numpy()
        assert ours[kind].dtype == np.float16 and ours[kind].shape == expected.shape
        # Half a unit in the last place of float16 is 5e-4 of a value.
        assert np.linalg.norm(ours[kind] - expected) <= 1e-3 * np.linalg.norm(expected)


def test_openvino_normalises_each_channel_by_its_own_numbers(tmp_path: Path) -> None:
    imagenets = replace(rule(96), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    encoder = random_network("resnet18", 96, tmp_path).seeing(imagenets)
    image = picture(96)
    ours = OpenVINOEngine(encoder, threads=1)(image, KINDS)
    reference = encoder(encoder.preprocessing.normalised(image)[None]).grid[0].numpy()
    assert np.linalg.norm(ours["grid"] - reference) <= 1e-3 * np.linalg.norm(reference)


def test_bits_depend_neither_on_company_nor_on_threads(tmp_path: Path) -> None:
    encoder = random_network("resnet18", 96, tmp_path)
    images = [picture(96, seed) for seed in range(12)]
    alone = OpenVINOEngine(encoder, threads=1)
    crowded = OpenVINOEngine(encoder, threads=3)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: crowded(image, ["grid"])["grid"], images[::-1]))
    for image, grid in zip(images, together[::-1], strict=True):
        np.testing.assert_array_equal(alone(image, ["grid"])["grid"], grid)


def grouped(groups: int) -> nn.Module:
    return nn.Conv2d(16, 16, kernel_size=3, padding=1, groups=groups)


class ChannelsLast(nn.Sequential):
    """Its modules see channels in the last dimension, as ConvNeXt's linear layers do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def kernels(network: nn.Module) -> list[str]:
    """The kernels of its convolutions, as compiled for images (1, 3, 24, 24)."""
    images = torch.zeros(1, 3, 24, 24)
    compiled = compiled_for_cpu(network.requires_grad_(False), images, threads=1)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    convolutions = [node for node in nodes if node["layerType"].value == "Convolution"]
    return [node["primitiveType"].value for node in convolutions]


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="kernels for AVX2"
)
@pytest.mark.parametrize(
    ("capability", "middle", "direct"),
    [
        ("AVX2", grouped(16), True),  # depthwise
        ("AVX2", grouped(4), False),
        ("AVX2", ChannelsLast(nn.Linear(16, 16)), False),
        ("AVX512", grouped(16), False),
    ],
)
def test_avx2_runs_dense_and_depthwise_convolutions_directly(
    monkeypatch, capability: str, middle: nn.Module, direct: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    first, last = nn.Conv2d(3, 16, kernel_size=3, stride=2), nn.Conv2d(16, 32, kernel_size=1)
    found = kernels(nn.Sequential(first, middle, last))
    assert len(found) >= 2
    assert {kernel.startswith("jit_avx2") for kernel in found} == {direct}, found


def test_networks_that_fold_pixels_into_channels_keep_openvinos_kernels(monkeypatch) -> None:
    network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, kernel_size=3), grouped(16))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    expected = kernels(network)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert kernels(network) == expected


def test_without_direct_convolutions_openvino_is_used_all_the_same(monkeypatch) -> None:
    def unknown(core: object) -> None:
        raise RuntimeError("no such attribute")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(engines, "_kernel_priority", unknown)
    assert len(kernels(nn.Conv2d(3, 16, kernel_size=3))) == 1


def choose(encoder: Encoder, images: int = MANY) -> engines.Engine:
    image = picture(encoder.preprocessing.size)
    return engine_for(encoder, image, images=images, batch_size=4, device=CPU)


def test_few_pictures_do_not_wait_for_a_conversion_but_use_one_that_was_made(capsys) -> None:
    encoder = tiny_encoder()
    assert isinstance(choose(encoder, MANY - 1), TorchEngine)
    engine = choose(encoder, MANY)
    assert isinstance(engine, OpenVINOEngine)
    assert choose(encoder, 1) is engine
    assert choose(tiny_encoder(), MANY) is not engine
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("works", [True, False])
def test_an_engine_does_not_keep_its_encoder_in_memory(monkeypatch, works: bool) -> None:
    if not works:
        monkeypatch.setattr(engines, "compiled_encoder", None)
    encoder = tiny_encoder()
    choose(encoder)
    gone = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert gone() is None


def test_a_failed_conversion_is_named_once_and_the_eager_encoder_used(monkeypatch, capsys) -> None:
    def fail(encoder: Encoder, *, threads: int) -> None:
        raise RuntimeError("no such operation: aten::frobnicate\nwith a long trace")

    monkeypatch.setattr(engines, "compiled_encoder", fail)
    encoder = tiny_encoder()
    for _ in range(2):
        engine = choose(encoder)
        assert isinstance(engine, TorchEngine) and engine.network is encoder
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "aten::frobnicate" in notes[0] and "slow" in notes[0]


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_an_engine_that_differs_is_not_used(monkeypatch, capsys, factor: float) -> None:
    right = OpenVINOEngine.__call__

    def wrong(self, image, kinds):
        features = right(self, image, kinds)
        return features | {"pooled": (features["pooled"] * factor).astype(np.float16)}

    monkeypatch.setattr(OpenVINOEngine, "__call__", wrong)
    assert isinstance(choose(tiny_encoder()), TorchEngine)
    assert "differ by" in capsys.readouterr().err


def test_a_batch_is_what_each_picture_is_alone() -> None:
    engine = eager_engine(tiny_encoder(), 4)
    images = [picture(16, seed) for seed in range(4)]
    batch = engine.start(batch_of(images), KINDS)()
    for row, image in enumerate(images):
        for kind, features in engine(image, KINDS).items():
            np.testing.assert_array_equal(features, batch[kind][row])


def test_half_precision_is_another_copy_compiled_when_asked(monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda m, **options: compiled.append(options) or m)
    encoder = tiny_encoder()
    eager = eager_engine(encoder, 4)
    for expected in ([], [{"dynamic": False}]):
        engine = engines._half(eager, encoder, compiled=bool(expected))
        assert compiled == expected
    assert next(encoder.parameters()).dtype == torch.float32
    image = picture(16)
    assert engines._difference(engine(image, KINDS), eager(image, KINDS)) < engines.HALF_TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("images", [1, engines.COMPILE_FROM_IMAGES])
def test_on_a_gpu_half_precision_stays_near_the_eager_features(capsys, images: int) -> None:
    encoder = efficientnet_lite(size=0, weights=None, preprocessing=rule(224))
    device = torch.device("cuda")
    engine = engine_for(encoder, picture(224), images=images, batch_size=8, device=device)
    assert capsys.readouterr().err == ""
    assert isinstance(engine, TorchEngine) and engine.dtype == torch.float16
    assert engine.network is not encoder
    assert encoder.body.conv_head.weight.is_contiguous(memory_format=torch.channels_last)
    batches = [batch_of([picture(224, 8 * b + i) for i in range(8)]) for b in range(3)]
    begun = [engine.start(batches[0], KINDS)]
    pinned = [batch.pin_memory() for batch in batches[1:]]
    torch.cuda.set_sync_debug_mode("error")  # none waits for another
    try:
        begun += [engine.start(batch, KINDS) for batch in pinned]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    eager = eager_engine(encoder, 8, device)
    for batch, finish in zip(batches, begun, strict=True):
        difference = engines._difference(finish(), eager.start(batch, KINDS)())
        assert difference < engines.HALF_TOLERANCE


SILENT = """
import socket, sys
import numpy
def refuse(*arguments):
    raise SystemExit(f"something wants the network: {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
import multiprocessing
multiprocessing.Process.start = refuse
from tiny_encoder import tiny_encoder
from showtell.vision.engines import OpenVINOEngine
OpenVINOEngine(tiny_encoder(), threads=1)(numpy.zeros((16, 16, 3), numpy.uint8), ["grid"])
import openvino.tools.ovc as converter
print(type(converter.telemetry).__module__, any("_telemetry." in name for name in sys.modules))
"""


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Neither a connection nor a client id: its own stub stands where its reporter would."""
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(
        [sys.executable, "-c", SILENT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"], run.stderr
    assert not (tmp_path / "intel").exists()
