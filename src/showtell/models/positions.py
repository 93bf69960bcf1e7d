"""The real positions of padded captions: nothing is computed for their padding.

Dimension key: N rows, T positions, P real positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RealPositions(NamedTuple):
    """Where the real positions of padded rows stand, row by row, each row from left to right.

    ``padded[positions.rows, positions.times]`` takes them out of (N, T, ...) as (P, ...).
    """

    row_count: int  # N
    rows: Tensor  # (P,) in 0..N-1
    times: Tensor  # (P,) in 0..T-1

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> RealPositions:
        """Those of rows of ``lengths`` (N,), which lie on the CPU: no device is waited for."""
        rows_P = torch.repeat_interleave(lengths)
        starts_N = lengths.cumsum(0) - lengths
        times_P = torch.arange(len(rows_P)) - starts_N[rows_P]
        return cls(len(lengths), rows_P.to(device), times_P.to(device))


class TimeOrder(NamedTuple):
    """The real positions time by time, longer rows first: what one step reads lies together."""

    sizes: list[int]  # (T,) rows that have a position at each time
    longest_first: Tensor  # (N,) rows
    from_rows: Tensor  # (P,) where, row by row, each position stands
    to_rows: Tensor  # (P,) the inverse
    before: Tensor  # (P,) the state each position continues, of N initial ones and then P

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> TimeOrder:
        """The order for rows of ``lengths`` (N,), which lie on the CPU."""
        sorted_N, longest_first = torch.sort(lengths, descending=True, stable=True)
        present_TN = torch.arange(int(sorted_N[0])).unsqueeze(1) < sorted_N
        time_P, rank_P = present_TN.nonzero(as_tuple=True)
        sizes_T = present_TN.sum(1)
        starts_N = lengths.cumsum(0) - lengths
        from_rows = starts_N[longest_first[rank_P]] + time_P
        # What time 0 continues begins at 0, what time 1 does behind the N initial states.
        begins = torch.cat([torch.tensor([0, len(lengths)]), len(lengths) + sizes_T.cumsum(0)])
        indices = longest_first, from_rows, from_rows.argsort(), begins[time_P] + rank_P
        return cls(sizes_T.tolist(), *(index.to(device) for index in indices))
