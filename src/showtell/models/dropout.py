"""Dropout with one mask per row, kept for the whole caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LockedDropout(nn.Module):
    """Variational dropout: the same units of a row are dropped at every position.

    Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks". Besides regularizing a recurrence better than fresh masks, it draws T times fewer
    random numbers, which on a CPU cost more than the matrix product behind them.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate lies in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, T, H) with one mask per row, or (N, H) with one per row and unit."""
        if not self.training or self.rate == 0.0:
            return inputs
        shape = (inputs.shape[0], 1, inputs.shape[2]) if inputs.dim() == 3 else inputs.shape
        kept = torch.rand(shape, device=inputs.device, dtype=inputs.dtype) >= self.rate
        return inputs * kept / (1.0 - self.rate)
