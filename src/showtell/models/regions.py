"""Attention over image regions, with all queries of an image batched together.

Dimension key: B images, N rows, G rows of one image, Q queries of one image, R regions, H width,
A score size of additive attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from showtell.models.recurrence import fast_tanh

# Queries (B, Q, ...) -> contexts (B, Q, H) and weights (B, Q, R), over fixed regions.
Attention = Callable[[Tensor], tuple[Tensor, Tensor]]
# Queries (n, ...) -> contexts (n, H), each row over the regions of its image.
Look = Callable[[Tensor], Tensor]


class RegionAttention(nn.Module):
    """Soft attention with the multiplicative score: softmax over r of q W v_r / sqrt(H).

    Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", call
    this score "general"; the scale is from Vaswani et al. 2017. The additive score of Xu et al.
    2015, "Show, Attend and Tell", needs a vector of tanh for each pair of a word and a region,
    which on a CPU costs more than the rest of a decoder; this one is two matrix products.
    """

    def __init__(self, query_width: int, region_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, region_width, bias=False)
        self._scale = 1.0 / math.sqrt(region_width)

    def forward(self, queries: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (B, Q, H) and weights (B, Q, R), each row of which sums to 1.

        Args:
            queries: (B, Q, query_width): all words of all captions of an image.
            regions: (B, R, H).
        """
        scores_BQR = torch.bmm(self.query(queries) * self._scale, regions.transpose(1, 2))
        weights_BQR = torch.softmax(scores_BQR, dim=-1)
        return torch.bmm(weights_BQR, regions), weights_BQR

    def with_sentinel(
        self, queries: Tensor, regions: Tensor, sentinel_keys: Tensor, sentinels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention in which each query also has a sentinel of its own beside the regions.

        Args:
            queries: (B, Q, query_width).
            regions: (B, R, H).
            sentinel_keys: (B, Q, H), the key of each query's sentinel.
            sentinels: (B, Q, H), the value of each query's sentinel.

        Returns:
            Contexts (B, Q, H) and weights (B, Q, R + 1), the last for the sentinel.
        """
        asked_BQH = self.query(queries) * self._scale
        scores_BQR = torch.bmm(asked_BQH, regions.transpose(1, 2))
        sentinel_BQ1 = (asked_BQH * sentinel_keys).sum(dim=-1, keepdim=True)
        weights = torch.softmax(torch.cat([scores_BQR, sentinel_BQ1], dim=-1), dim=-1)
        contexts_BQH = torch.bmm(weights[..., :-1], regions)
        return torch.addcmul(contexts_BQH, weights[..., -1:], sentinels), weights


class AdditiveAttention(nn.Module):
    """Soft attention with the additive score: softmax over r of w tanh(U q + W v_r + b).

    Bahdanau et al. 2015; f_att in Xu et al. 2015, "Show, Attend and Tell".
    """

    def __init__(self, query_width: int, region_width: int, score_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, score_size, bias=False)
        self.key = nn.Linear(region_width, score_size)  # once per image; the caller keeps the keys
        self.score = nn.Linear(score_size, 1, bias=False)

    def forward(self, queries: Tensor, regions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (B, Q, H) and weights (B, Q, R), each row of which sums to 1.

        Args:
            queries: (B, Q, query_width).
            regions: (B, R, H).
            keys: (B, R, A), ``self.key(regions)``.
        """
        heard_BQRA = fast_tanh(self.query(queries).unsqueeze(2) + keys.unsqueeze(1))
        weights_BQR = torch.softmax(self.score(heard_BQRA).squeeze(-1), dim=-1)
        return torch.bmm(weights_BQR.to(regions.dtype), regions), weights_BQR


class RowsByImage:
    """Groups rows, in any order, by image, and restores their order.

    Groups are padded with zeros to the size of the largest.
    """

    def __init__(self, image_of_row: Tensor, images: int) -> None:
        """Take ``image_of_row`` (N,), in 0..images-1."""
        counts_B = torch.bincount(image_of_row, minlength=images)
        self._images, self._most = images, int(counts_B.max())
        order_N = torch.argsort(image_of_row, stable=True)
        sorted_N = image_of_row[order_N]
        first_B = counts_B.cumsum(0) - counts_B
        place_N = torch.arange(len(order_N), device=order_N.device) - first_B[sorted_N]
        self._slots = torch.empty_like(order_N)
        self._slots[order_N] = sorted_N * self._most + place_N

    def group(self, rows: Tensor) -> Tensor:
        """Rows (N, ...), or the first n of them, as (B, G, ...), G being the largest group size."""
        slots = rows.new_zeros(self._images * self._most, *rows.shape[1:])
        filled = slots.index_copy(0, self._slots[: len(rows)], rows)
        return filled.view(self._images, self._most, *rows.shape[1:])

    def ungroup(self, grouped: Tensor, count: int) -> Tensor:
        """Inverse of ``group``: (B, G, ...) back to the first ``count`` rows."""
        return grouped.flatten(0, 1).index_select(0, self._slots[:count])


def attend_beams(attention: Attention, images: int) -> Look:
    """Attention for a search: rows of an image are adjacent, and all have the same number."""

    def look(asking: Tensor) -> Tensor:
        return attention(asking.view(images, -1, asking.shape[1]))[0].flatten(0, 1)

    return look


def attend_rows(attention: Attention, by_image: RowsByImage) -> Look:
    """Attention for rows of images in any order, or for the first n of these rows."""

    def look(asking: Tensor) -> Tensor:
        return by_image.ungroup(attention(by_image.group(asking))[0], len(asking))

    return look


def attend_recording(attention: Attention, weights: list[Tensor]) -> Look:
    """Attention for one row of one image; each call appends its weights (1, R) to ``weights``."""

    def look(asking: Tensor) -> Tensor:
        context_11H, weights_11R = attention(asking.unsqueeze(0))
        weights.append(weights_11R[0])
        return context_11H[0]

    return look
