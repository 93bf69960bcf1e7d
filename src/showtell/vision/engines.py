"""Fast execution of encoders: OpenVINO on a CPU, half precision on a GPU.

The eager encoder is the reference. Each engine is compared with it on the first picture to encode;
if the engine cannot be built or differs, the eager encoder is used and a note says so.

Shapes: ``B`` images, ``S`` input side in pixels, ``R`` regions, ``D`` feature size.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from queue import SimpleQueue
from typing import Any, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from showtell.types import FeatureKind
from showtell.vision.encoder import Encoder, EncoderOutput
from showtell.vision.images import Preprocessing

FEATURE_KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)

# Pooled (D,) or grid (R, D) of one image, or of a batch (B, ...), in the type of the store.
EncodedImages = Mapping[FeatureKind, NDArray[np.float16]]
Pixels = NDArray[np.uint8]  # (S, S, 3): a picture cropped and resized, not yet normalised

# Conversion takes one to two core seconds, about what the eager encoder needs for this many
# pictures; captioning a single picture should not wait for it.
CONVERT_FROM_IMAGES = 16
# Compiling for a GPU takes half a minute, in which uncompiled half precision encodes this many.
COMPILE_FROM_IMAGES = 50_000
# Largest distance of features from the reference, relative to their norm: single precision differs
# by the order of summation, half precision by the rounding in every layer.
SINGLE_TOLERANCE = 1e-3
HALF_TOLERANCE = 1e-2


class OpenVINOEngine:
    """An encoder compiled by OpenVINO, one picture at a time on each of ``threads`` threads.

    A request is one picture on one thread. So features depend neither on the other pictures nor on
    the number of cores, and cores never wait for each other within a layer. It takes
    ``concurrent_calls``, two for each thread, so that a thread has the next picture while the
    caller of the last one wakes up or decodes.
    """

    def __init__(self, encoder: Encoder, *, threads: int) -> None:
        self.concurrent_calls = 2 * threads
        self._tensor = _openvino().Tensor
        compiled = compiled_encoder(encoder, threads=threads)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.concurrent_calls):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, pixels: Pixels, kinds: Sequence[FeatureKind]) -> EncodedImages:
        """Features of one picture; thread-safe."""
        request = self._requests.get()
        try:
            # ``infer`` does the same with a millisecond of dictionaries and copies on top.
            request.set_input_tensor(self._tensor(pixels[None], shared_memory=True))
            request.start_async()
            request.wait()
            # The request owns its outputs and will overwrite them.
            return {
                kind: request.get_output_tensor(EncoderOutput._fields.index(kind)).data[0].copy()
                for kind in kinds
            }
        finally:
            self._requests.put(request)


def _openvino() -> Any:
    """The ``openvino`` module, imported with its telemetry (a network request) disabled."""
    # If the telemetry package cannot be imported, OpenVINO falls back to a stub that does nothing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino  # type: ignore[import-untyped]

    return openvino


def compiled_encoder(encoder: Encoder, *, threads: int) -> Any:
    """``encoder`` compiled by OpenVINO: pixels (1, S, S, 3), uint8, to its float16 features."""
    rule = encoder.preprocessing
    normalised = rule.in_network(torch.device("cpu"))

    def encode(pixels: Tensor) -> tuple[Tensor, ...]:
        # Normalised inside the graph, which fuses it with reading the input: done separately it
        # takes half as long as decoding the JPEG.
        return tuple(features.half() for features in encoder(normalised(pixels)))

    example = torch.zeros((1, rule.size, rule.size, 3), dtype=torch.uint8)
    return compiled_for_cpu(encode, example, threads=threads)


def compiled_for_cpu(
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], example: Tensor, *, threads: int
) -> Any:
    """``function`` compiled by OpenVINO for inputs of ``example``'s shape, one input a thread.

    The parameters that ``function`` uses must be frozen: they become constants.
    """
    openvino, shape = _openvino(), list(example.shape)
    with warnings.catch_warnings(), torch.no_grad():
        # The warnings: tracing is deprecated, and sizes become constants (which they are here).
        warnings.simplefilter("ignore")
        # A function, because weights it closes over become constants at once, where a module would
        # be scripted as a whole; unchecked, because checking runs it three times. Both together
        # would be four times the work.
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda images: function(images), example, check_trace=False, strict=False
        )
        model = openvino.convert_model(traced, example_input=example, input=shape)
    core = openvino.Core()
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        # The attribute may change with OpenVINO's version; without it the network is only slower.
        with suppress(Exception):
            _prefer_direct_convolutions(model, core)
    properties = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on some processors
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a second process would be pinned to the same cores
    }
    return core.compile_model(model, "CPU", properties)


def _prefer_direct_convolutions(model: Any, core: Any) -> None:
    """Ask for oneDNN's direct convolutions for AVX2, if ``model`` is of a kind they suit.

    OpenVINO would take convolutions made of small matrix products, with which a network of dense
    and depthwise convolutions needs up to a third longer on a processor without AVX-512. Direct
    ones keep channels in blocks of eight, so they lose where matrix products (of transformers, or
    ConvNeXt) need the channels in a row, and do not exist for other groups (ResNeXt's). OpenVINO
    changes to blocks at a first convolution of three channels; without one (a network that first
    folds pixels into channels) it would multiply whole matrices instead.
    """
    nodes = model.get_ordered_ops()
    dense, grouped, products = (
        [node for node in nodes if node.get_type_name() == kind]
        for kind in ("Convolution", "GroupConvolution", "MatMul")
    )
    # Weights of a grouped convolution: (groups, outputs, inputs of a group, ...).
    depthwise = all(list(node.input(1).get_shape())[1:3] == [1, 1] for node in grouped)
    sees_colours = bool(dense) and dense[0].input(1).get_shape()[1] == 3
    if products or not depthwise or not sees_colours:
        return
    for key, attribute in _kernel_priority(core).items():
        for node in dense + grouped:
            node.set_rt_info(attribute, key)


def _kernel_priority(core: Any) -> Any:
    """The attribute of a node that names the kernels to try first, by its key."""
    # Python can pass such an attribute on but not make one, so it is read from a model in
    # OpenVINO's own format: an input that has it, and an output.
    kernels = "cpu:jit_avx2_dw,cpu:jit_avx2_1x1,cpu:jit_avx2"
    model = f"""
        <net name="carrier" version="11">
          <layers>
            <layer id="0" name="input" type="Parameter" version="opset1">
              <data shape="1" element_type="f32"/>
              <rt_info>
                <attribute name="primitives_priority" version="0" value="{kernels}"/>
              </rt_info>
              <output><port id="0" precision="FP32"><dim>1</dim></port></output>
            </layer>
            <layer id="1" name="output" type="Result" version="opset1">
              <input><port id="0" precision="FP32"><dim>1</dim></port></input>
            </layer>
          </layers>
          <edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges>
        </net>"""
    (parameter,) = core.read_model(model.encode(), b"").get_parameters()
    return parameter.get_rt_info()


@dataclass(frozen=True)
class TorchEngine:
    """An encoder run by PyTorch on full batches of ``batch_size`` pictures.

    ``network`` maps normalised images (B, 3, S, S) of type ``dtype`` on ``device`` to features.
    """

    network: Callable[[Tensor], EncoderOutput]
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def _normalised(self) -> Callable[[Tensor], Tensor]:
        """Made once: to put its constants on a GPU waits for all that was started there."""
        return self.preprocessing.in_network(self.device)

    def empty_batch(self) -> Tensor:
        """Pixels (B, S, S, 3) of a batch, uint8, all zero, to be filled and given to ``start``."""
        side, on_gpu = self.preprocessing.size, self.device.type == "cuda"
        shape = (self.batch_size, side, side, 3)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
        # ``torch.zeros`` would start a thread on each core, and all cores are busy decoding.
        batch.numpy().fill(0)
        return batch

    def start(self, pixels: Tensor, kinds: Sequence[FeatureKind]) -> Callable[[], EncodedImages]:
        """Start encoding a batch of ``empty_batch``; the returned function waits for the end.

        On a GPU the next batch can be started before it is called. Pixels are normalised there:
        as bytes they are a quarter to copy.
        """
        on_gpu = self.device.type == "cuda"
        images = self._normalised(pixels.to(self.device, non_blocking=True)).to(self.dtype)
        output = self.network(images)
        features = {
            kind: getattr(output, kind).half().to("cpu", non_blocking=on_gpu) for kind in kinds
        }
        # An event, because synchronizing the device would also wait for the next batch.
        copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if copied:
            copied.record(torch.cuda.current_stream(self.device))

        def finish() -> EncodedImages:
            if copied:
                copied.synchronize()
            return {kind: rows.numpy() for kind, rows in features.items()}

        return finish

    def __call__(self, pixels: Pixels, kinds: Sequence[FeatureKind]) -> EncodedImages:
        """Features of one picture, in a zero-padded full batch: the same as in any other batch."""
        batch = self.empty_batch()
        batch[0] = torch.from_numpy(pixels)
        return {kind: rows[0] for kind, rows in self.start(batch, kinds)().items()}


Engine = OpenVINOEngine | TorchEngine

# Engines by encoder body, so that one conversion serves all calls; the keys include the process,
# because an engine's threads do not survive a fork. None marks an engine that failed.
_BUILT: WeakKeyDictionary[nn.Module, dict[Hashable, Engine | None]] = WeakKeyDictionary()


def engine_for(
    encoder: Encoder, example: Pixels, *, images: int, batch_size: int, device: torch.device
) -> Engine:
    """The fastest engine for encoding ``images`` pictures, ``example`` being the first.

    An engine that is slow to build is built only for many pictures; once built it also serves
    few. If it fails or differs from the eager encoder by more than its tolerance, a note goes to
    standard error and the eager encoder is used.
    """
    encoder.to(device)
    eager = TorchEngine(encoder, encoder.preprocessing, batch_size, device, torch.float32)
    built = _BUILT.setdefault(encoder.body, {})  # encoders that differ in their views share it
    rule = encoder.preprocessing
    look = (rule.size, rule.mean, rule.std)
    build: Callable[[], Engine]
    if device.type == "cuda":
        compiled = images >= COMPILE_FROM_IMAGES
        key: Hashable = (os.getpid(), look, device, batch_size, compiled)
        build, tolerance = partial(_half, eager, encoder, compiled=compiled), HALF_TOLERANCE
    else:
        threads = torch.get_num_threads()
        key = (os.getpid(), look, threads)
        if key not in built and images < CONVERT_FROM_IMAGES:
            return eager
        build, tolerance = partial(OpenVINOEngine, encoder, threads=threads), SINGLE_TOLERANCE
    if key not in built:
        built[key] = _checked(build, eager, example, tolerance)
    return built[key] or eager


def _half(eager: TorchEngine, encoder: Encoder, *, compiled: bool) -> TorchEngine:
    """The encoder in half precision; its memory format is channels-last already."""
    network: Any = copy.deepcopy(encoder).to(torch.float16)
    if compiled:
        network = torch.compile(network, dynamic=False)
    return replace(eager, network=network, dtype=torch.float16)


def _checked(
    build: Callable[[], Engine], eager: TorchEngine, example: Pixels, tolerance: float
) -> Engine | None:
    """The built engine if its features of ``example`` match the eager ones, else None."""
    try:
        engine = build()
        alone = replace(eager, batch_size=1)  # a full batch would take seconds on a CPU
        difference = _difference(engine(example, FEATURE_KINDS), alone(example, FEATURE_KINDS))
        if difference <= tolerance:
            return engine
        problem = f"features differ by {difference:.1e} of their norm, more than {tolerance:.0e}"
    except Exception as error:
        # Compilers raise errors of any type, and the eager encoder can do the work.
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    print(f"note: encoding with the eager network, which is slower ({problem})", file=sys.stderr)
    return None


def _difference(ours: EncodedImages, reference: EncodedImages) -> float:
    """The largest relative distance ||ours - ref|| / ||ref|| over the kinds; nan if undefined."""
    shares: list[float] = []
    for kind, expected in reference.items():
        exact = expected.astype(np.float64)
        distance = np.linalg.norm(ours[kind].astype(np.float64) - exact)
        shares.append(float(distance / np.linalg.norm(exact)) if distance else 0.0)
    return float(np.max(shares))  # the built-in max() can lose a nan
