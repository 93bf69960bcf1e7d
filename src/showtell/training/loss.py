"""Cross-entropy over the vocabulary: for teacher forcing and, weighted, for policy gradients.

Dimension key: P positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy_(
    logits: Tensor, targets: Tensor, *, label_smoothing: float, weights: Tensor | None = None
) -> Tensor:
    """``F.cross_entropy`` of logits (P, V) and targets (P,), in nats per position.

    On a CPU, in float32 and float64, it takes two thirds of PyTorch's time and overwrites
    ``logits``, first with what it computes of them, then with their gradient; do not use them
    afterwards. Logits over a vocabulary do not fit into a cache, so the time depends on how often
    memory is read and written.

    Args:
        weights: (P,) weight of each position, possibly negative; None weighs all by 1. The mean is
            over positions, not over weights.
    """
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.float64):
        losses_P = F.cross_entropy(
            logits, targets, label_smoothing=label_smoothing, reduction="none"
        )
        return (losses_P if weights is None else losses_P * weights).mean()
    loss: Tensor = _CrossEntropy.apply(logits, targets, label_smoothing, weights)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Mean over positions of logsumexp(logits) - (1 - s) * target logit - s * mean logit."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        # Lowered, so that no exponential overflows; detached, so that the gradient has no history.
        lowered_PV = logits.detach().sub_(logits.amax(1, keepdim=True))
        told_P1 = lowered_PV.gather(1, targets.unsqueeze(1))
        losses_P1 = -(1.0 - smoothing) * told_P1
        if smoothing:
            losses_P1 -= smoothing * lowered_PV.mean(1, keepdim=True)
        exponentials_PV = lowered_PV.exp_()
        sums_P1 = exponentials_PV.sum(1, keepdim=True)
        losses_P1 += sums_P1.log()
        ctx.save_for_backward(exponentials_PV, sums_P1, targets, weights)
        ctx.smoothing = smoothing
        return (losses_P1 if weights is None else losses_P1 * weights.unsqueeze(1)).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        exponentials_PV, sums_P1, targets, weights = ctx.saved_tensors
        positions, words = exponentials_PV.shape
        share_P1 = (gradient / positions).expand(positions, 1)
        if weights is not None:
            share_P1 = share_P1 * weights.unsqueeze(1)
        # In place: a second backward pass is refused by PyTorch, which sees the change.
        logits_gradient = exponentials_PV.mul_(share_P1 / sums_P1)
        if ctx.smoothing:
            logits_gradient.sub_(share_P1 * (ctx.smoothing / words))
        told_P1 = share_P1 * (ctx.smoothing - 1.0)
        return logits_gradient.scatter_add_(1, targets.unsqueeze(1), told_P1), None, None, None
