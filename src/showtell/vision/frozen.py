"""The frozen part of a network that is trained: without gradients, and as fast as the machine can.

Shapes: ``B`` images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from showtell.vision.engines import openvino_of


def frozen(network: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """A network of frozen parameters, for batches (B, ...) of what ``example`` (1, ...) has one of.

    On a CPU OpenVINO computes it, a picture on each thread, several times as fast as PyTorch in
    eager mode; on a GPU the network itself does.
    """
    if example.device.type != "cpu":
        return torch.no_grad()(network)
    openvino, threads = openvino_of(), torch.get_num_threads()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # they take sizes for constants: they are
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda images: network(images), example, check_trace=False, strict=False
        )
        model = openvino.convert_model(traced, example_input=example, input=list(example.shape))
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        },
    )
    pool = ThreadPoolExecutor(threads)

    def run(image: Tensor) -> np.ndarray:
        (output,) = compiled.create_infer_request().infer([image[None].numpy()]).values()
        return np.array(output)

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(np.concatenate(list(pool.map(run, images))))

    return forward
