"""Encoders made fast for the machine at hand: OpenVINO on a CPU, half precision on a GPU.

The eager encoder is the reference. An engine is compared with it on the first picture it is to
encode; where it cannot be built or differs, the eager encoder does the work and a note says so.

Shapes: ``B`` images, ``S`` input side in pixels, ``R`` regions, ``D`` feature size.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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

# (D,) pooled or (R, D) grid of one image, or these of a batch, as they are stored.
EncodedImages = Mapping[FeatureKind, NDArray[np.float16]]
Pixels = NDArray[np.uint8]  # (S, S, 3), what the network sees of a picture

# Converting takes one to two seconds of a core, about what the eager encoder takes for as many
# pictures; captioning one picture should not wait for it.
CONVERT_FROM_IMAGES = 16
# Compiling for a GPU takes about half a minute, enough for half precision alone to encode these.
COMPILE_FROM_IMAGES = 50_000
# How far features may be from the reference's, as a share of their norm: in single precision they
# differ by the order of sums, in half precision by the rounding of every layer.
SINGLE_TOLERANCE = 1e-3
HALF_TOLERANCE = 1e-2


class OpenVINOEngine:
    """An encoder compiled for the CPU, one picture at a time on each of ``threads`` threads.

    One picture is one request that is computed on one thread: its features can depend neither on
    its company nor on the number of cores, and cores never wait for each other within a layer.
    """

    def __init__(self, encoder: Encoder, *, threads: int) -> None:
        self.threads = threads
        self._tensor = _openvino().Tensor
        compiled = _compiled_by_openvino(encoder, threads)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, pixels: Pixels, kinds: Sequence[FeatureKind]) -> EncodedImages:
        """Features of one picture; any thread may call."""
        request = self._requests.get()
        try:
            # ``infer`` is the same, with a millisecond of dictionaries and copies around it.
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
    """The library, silenced: importing it reports to its makers over the network."""
    # Where the package that sends cannot be imported, a stub of OpenVINO's own does nothing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino  # type: ignore[import-untyped]

    return openvino


def _compiled_by_openvino(encoder: Encoder, threads: int) -> Any:
    rule = encoder.preprocessing
    normalised = rule.in_network(torch.device("cpu"))

    def encode(pixels: Tensor) -> tuple[Tensor, ...]:
        # Normalised within the graph, which does it while it reads; a thread of its own
        # arithmetic takes as long as half the JPEG.
        return tuple(features.half() for features in encoder(normalised(pixels)))

    example = torch.zeros((1, rule.size, rule.size, 3), dtype=torch.uint8)
    return compiled_for_cpu(encode, example, threads=threads)


def compiled_for_cpu(
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], example: Tensor, *, threads: int
) -> Any:
    """OpenVINO's model of ``function`` for inputs like ``example``, a request on each thread.

    The parameters that ``function`` uses must be frozen.
    """
    openvino, shape = _openvino(), list(example.shape)
    with warnings.catch_warnings(), torch.no_grad():
        # They say that traces are going out of fashion, and take sizes for constants: they are.
        warnings.simplefilter("ignore")
        # The weights that a function closes over become constants at once; a module would be
        # scripted as a whole, and checking the trace runs it thrice: four times the work together.
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda images: function(images), example, check_trace=False, strict=False
        )
        model = openvino.convert_model(traced, example_input=example, input=shape)
    properties = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would take bfloat16
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a second process would be pinned to the same cores
    }
    return openvino.Core().compile_model(model, "CPU", properties)


@dataclass(frozen=True)
class TorchEngine:
    """A torch encoder that takes full batches of ``batch_size`` preprocessed images.

    ``network`` maps images (B, 3, S, S) of type ``dtype`` on ``device`` to their features.
    """

    network: Callable[[Tensor], EncoderOutput]
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    dtype: torch.dtype

    def start(self, images: Tensor, kinds: Sequence[FeatureKind]) -> Callable[[], EncodedImages]:
        """Begin to encode preprocessed pictures (B, 3, S, S); what is returned waits for the end.

        On a GPU the next batch can be begun before.
        """
        on_gpu = self.device.type == "cuda"
        images = images.pin_memory() if on_gpu else images
        output = self.network(images.to(self.device, non_blocking=True).to(self.dtype))
        features = {
            kind: getattr(output, kind).half().to("cpu", non_blocking=on_gpu) for kind in kinds
        }
        # Waiting for the device would wait for the next batch too.
        copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if copied:
            copied.record(torch.cuda.current_stream(self.device))

        def finish() -> EncodedImages:
            if copied:
                copied.synchronize()
            return {kind: rows.numpy() for kind, rows in features.items()}

        return finish

    def __call__(self, pixels: Pixels, kinds: Sequence[FeatureKind]) -> EncodedImages:
        """Features of one picture, as it has them in any batch."""
        image = self.preprocessing.normalised(pixels)
        images = torch.zeros(self.batch_size, *image.shape)
        images[0] = image
        return {kind: rows[0] for kind, rows in self.start(images, kinds)().items()}


Engine = OpenVINOEngine | TorchEngine

# By encoder, because new pictures come in parts and one conversion should do for all; and by
# process, because an engine's threads do not survive a fork. None is an engine that failed.
_BUILT: WeakKeyDictionary[nn.Module, dict[Hashable, Engine | None]] = WeakKeyDictionary()


def engine_for(
    encoder: Encoder, example: Pixels, *, images: int, batch_size: int, device: torch.device
) -> Engine:
    """The engine for ``images`` pictures in all, of which ``example`` is the first.

    An engine that takes long to build is built for many pictures, and then kept for few as well.
    Where one fails or differs from the eager encoder by more than its tolerance, standard error
    says so and the eager encoder is used.
    """
    encoder.to(device)
    eager = TorchEngine(encoder, encoder.preprocessing, batch_size, device, torch.float32)
    built = _BUILT.setdefault(encoder.body, {})  # which all views of its pictures share
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
    """The encoder in half precision; its layout is channels last already."""
    network: Any = copy.deepcopy(encoder).to(torch.float16)
    if compiled:
        network = torch.compile(network, dynamic=False)
    return replace(eager, network=network, dtype=torch.float16)


def _checked(
    build: Callable[[], Engine], eager: TorchEngine, example: Pixels, tolerance: float
) -> Engine | None:
    """The built engine if it gives the features of the eager one."""
    try:
        engine = build()
        alone = replace(eager, batch_size=1)  # a full batch would take seconds on a CPU
        difference = _difference(engine(example, FEATURE_KINDS), alone(example, FEATURE_KINDS))
        if difference <= tolerance:
            return engine
        problem = f"features differ by {difference:.1e} of their norm, more than {tolerance:.0e}"
    except Exception as error:
        # A compiler may fail in any way of its own, and the work can be done without it.
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    print(f"note: encoding with the eager network, which is slower ({problem})", file=sys.stderr)
    return None


def _difference(ours: EncodedImages, reference: EncodedImages) -> float:
    """The largest distance over the kinds, as a share of the reference's norm; nan if undefined."""
    shares: list[float] = []
    for kind, expected in reference.items():
        exact = expected.astype(np.float64)
        distance = np.linalg.norm(ours[kind].astype(np.float64) - exact)
        shares.append(float(distance / np.linalg.norm(exact)) if distance else 0.0)
    return float(np.max(shares))  # max() would pass over nan
