"""Matrix products with cache-aligned output, which are faster on a CPU.

Dimension key: P positions, M input, V output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# In elements: 16 float32 are a cache line of 64 bytes. With unaligned rows, as in a matrix of 2,543
# columns, the matrix product takes a third longer on a CPU.
ALIGNMENT = 16


def empty_aligned(like: Tensor, rows: int, columns: int) -> Tensor:
    """An uninitialized matrix (rows, columns) whose row stride is a multiple of a cache line."""
    width = -(-columns // ALIGNMENT) * ALIGNMENT
    return like.new_empty_strided((rows, columns), (width, 1))


def aligned_product(left: Tensor, right: Tensor) -> Tensor:
    """``left`` (rows, k) @ ``right`` (k, columns) into aligned memory, without gradients."""
    return torch.mm(left, right, out=empty_aligned(left, len(left), right.shape[1]))


class AlignedLinear(nn.Linear):
    """``nn.Linear`` for inputs (P, M) with aligned output, for outputs as wide as a vocabulary."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (P, V)."""
        return aligned_linear(inputs, self.weight, self.bias)


def aligned_linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` of inputs (P, M), weight (V, M) and bias (V,); aligned output on a CPU."""
    if inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(inputs, weight, bias)
    outputs: Tensor = _AlignedLinear.apply(inputs, weight, bias)
    return outputs


class _AlignedLinear(torch.autograd.Function):
    """An affine map written to aligned memory: autograd does not support ``out=``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        # Not ``addmm``, which fills the outputs with the bias in one thread before it adds to them.
        return aligned_product(inputs, weight.t()).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        weight_gradient = aligned_product(gradient.t(), inputs)
        return aligned_product(gradient, weight), weight_gradient, gradient.sum(0)
