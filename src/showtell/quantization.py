"""8-bit quantization of weights, for published files of a quarter of the size.

Symmetric, per output channel (Krishnamoorthi 2018, "Quantizing Deep Convolutional Networks for
Efficient Inference", section 3): each row of a matrix is stored as int8 multiples, -127 to 127, of
a step (scale) of its own. Nothing computes with int8: loading restores float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 127
# The least row length that is worth the four bytes of a step.
LEAST_WIDTH = 32
SCALES_SUFFIX = ".steps"  # suffix of the name of a quantized tensor's steps


def quantize(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize weights (R, ...): int8 multiples (R, ...) and float32 steps (R, 1, ...)."""
    largest = weights.float().abs().flatten(1).amax(dim=1).clamp(min=1e-12)
    steps = (largest / LARGEST).view(-1, *(1,) * (weights.dim() - 1))
    return (weights / steps).round().to(torch.int8), steps


def quantize_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for a file: wide matrices in 8 bits, other floats in half precision."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            kept[name] = tensor
        elif tensor.dim() > 1 and tensor[0].numel() >= LEAST_WIDTH:
            kept[name], kept[name + SCALES_SUFFIX] = quantize(tensor)
        else:
            kept[name] = tensor.half()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}


def dequantize_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dequantize a state dict of `quantize_state`; tensors without steps stay as they are.

    Raises:
        ValueError: steps that fit no quantized tensor, or an int8 tensor without steps.
    """
    restored = {name: tensor for name, tensor in state.items() if not name.endswith(SCALES_SUFFIX)}
    for name in state.keys() - restored.keys():
        own, steps = name.removesuffix(SCALES_SUFFIX), state[name]
        tensor = restored.get(own, steps)
        wanted = (*tensor.shape[:1], *(1,) * (tensor.dim() - 1))
        if tensor.dtype != torch.int8 or tensor.dim() < 2 or tuple(steps.shape) != wanted:
            raise ValueError(f"{name} fits no tensor in bytes")
        restored[own] = tensor * steps
    if bare := [name for name, tensor in restored.items() if tensor.dtype == torch.int8]:
        raise ValueError(f"{bare[0]} has lost its steps")
    return restored
