"""The real (unpadded) positions of captions, so that nothing is computed for padding.

Dimension key: N rows, T positions, P real positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RealPositions(NamedTuple):
    """Indices of the real positions in padded rows, row by row, left to right.

    ``padded[positions.rows, positions.times]`` gathers them from (N, T, ...) to (P, ...).
    """

    row_count: int  # N
    rows: Tensor  # (P,) in 0..N-1
    times: Tensor  # (P,) in 0..T-1

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> RealPositions:
        """The positions of rows of ``lengths`` (N,), a CPU tensor, so that no GPU is waited for."""
        rows_P = torch.repeat_interleave(lengths)
        starts_N = lengths.cumsum(0) - lengths
        times_P = torch.arange(len(rows_P)) - starts_N[rows_P]
        return cls(len(lengths), *(_sent(index, device) for index in (rows_P, times_P)))


class PackedOrder(NamedTuple):
    """The real positions in time order, longer rows first, so that each step's are contiguous.

    It is the layout of ``torch.nn.utils.rnn.PackedSequence``.
    """

    sizes: list[int]  # (T,) number of rows with a position at each time
    longest_first: Tensor  # (N,) rows by decreasing length
    from_rows: Tensor  # (P,) indices that put positions in row order into time order
    to_rows: Tensor  # (P,) the inverse

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> PackedOrder:
        """The order for rows of ``lengths`` (N,), a CPU tensor."""
        sorted_N, longest_first = torch.sort(lengths, descending=True, stable=True)
        present_TN = torch.arange(int(sorted_N[0])).unsqueeze(1) < sorted_N
        time_P, rank_P = present_TN.nonzero(as_tuple=True)
        sizes_T = present_TN.sum(1)
        starts_N = lengths.cumsum(0) - lengths
        from_rows = starts_N[longest_first[rank_P]] + time_P
        indices = longest_first, from_rows, from_rows.argsort()
        return cls(sizes_T.tolist(), *(_sent(index, device) for index in indices))


def _sent(index: Tensor, device: torch.device) -> Tensor:
    # Else CUDA would wait for all that it has been given before. Other devices may read the memory
    # only after it is freed.
    return index.to(device, non_blocking=device.type == "cuda")
