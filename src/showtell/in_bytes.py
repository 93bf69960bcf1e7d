"""Weights in a quarter of their size, for files that many people fetch.

A row of a matrix, all that one output is made of, is kept as whole multiples of a step, the largest
127 (symmetric rounding to 8 bits per channel: Krishnamoorthi 2018, "Quantizing Deep Convolutional
Networks for Efficient Inference", section 3). Nothing computes with the bytes: who loads them gets
float32 back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 127
# A row is worth a step of its own, which takes four bytes, from here on.
LEAST_WIDTH = 32
STEPS = ".steps"  # ends the name of the steps of a tensor in bytes


def in_bytes(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Multiples (R, ...) from -127 to 127 and the step of each row (R, 1, ...), float32."""
    largest = weights.float().abs().flatten(1).amax(dim=1).clamp(min=1e-12)
    steps = (largest / LARGEST).view(-1, *(1,) * (weights.dim() - 1))
    return (weights / steps).round().to(torch.int8), steps


def state_in_bytes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict to be written: wide matrices in bytes, all else in half precision."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            kept[name] = tensor
        elif tensor.dim() > 1 and tensor[0].numel() >= LEAST_WIDTH:
            kept[name], kept[name + STEPS] = in_bytes(tensor)
        else:
            kept[name] = tensor.half()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}


def from_bytes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `state_in_bytes` up to its rounding; another state dict is given back unchanged.

    Raises:
        ValueError: for steps that fit no tensor in bytes, or bytes without steps.
    """
    restored = {name: tensor for name, tensor in state.items() if not name.endswith(STEPS)}
    for name in state.keys() - restored.keys():
        own, steps = name.removesuffix(STEPS), state[name]
        tensor = restored.get(own, steps)
        wanted = (*tensor.shape[:1], *(1,) * (tensor.dim() - 1))
        if tensor.dtype != torch.int8 or tensor.dim() < 2 or tuple(steps.shape) != wanted:
            raise ValueError(f"{name} fits no tensor in bytes")
        restored[own] = tensor * steps
    if bare := [name for name, tensor in restored.items() if tensor.dtype == torch.int8]:
        raise ValueError(f"{bare[0]} has lost its steps")
    return restored
