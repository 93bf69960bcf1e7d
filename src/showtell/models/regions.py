"""Attention over the regions of a picture, computed once per image for all that look at it.

Dimension key: B images, N rows, G rows of one image, Q queries of one image, R regions, H width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from showtell.models.recurrence import quick_tanh

# Queries (B, Q, ...) -> contexts (B, Q, H) and weights (B, Q, R), over regions that are given.
Attention = Callable[[Tensor], tuple[Tensor, Tensor]]
# What asks (n, ...) -> what is seen (n, H), each row in its own image.
Look = Callable[[Tensor], Tensor]


class RegionAttention(nn.Module):
    """Soft attention with the multiplicative score: softmax over r of q W v_r / sqrt(H).

    Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", call
    this score general; the root is of Vaswani et al. 2017. The additive score of Xu et al. 2015,
    "Show, Attend and Tell", needs a tanh for each number of each pair of a word and a region,
    which on a CPU costs more than all the rest of a decoder; this one is two matrix products.
    """

    def __init__(self, query_width: int, region_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, region_width, bias=False)
        self._scale = 1.0 / math.sqrt(region_width)

    def forward(self, queries: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (B, Q, H) and weights (B, Q, R), each row of which sums to 1.

        Args:
            queries: (B, Q, query_width), what asks: all words of all captions of an image.
            regions: (B, R, H).
        """
        scores_BQR = torch.bmm(self.query(queries) * self._scale, regions.transpose(1, 2))
        weights_BQR = torch.softmax(scores_BQR, dim=-1)
        return torch.bmm(weights_BQR, regions), weights_BQR

    def with_own(
        self, queries: Tensor, regions: Tensor, own_keys: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same where each query may also choose something of its own beside the regions.

        Args:
            own_keys: (B, Q, H), what a query's own thing answers it with, as a region with itself.
            own: (B, Q, H), what is seen where it is chosen.

        Returns:
            Contexts (B, Q, H) and weights (B, Q, R + 1), the last that of the own thing.
        """
        asked_BQH = self.query(queries) * self._scale
        scores_BQR = torch.bmm(asked_BQH, regions.transpose(1, 2))
        own_BQ1 = (asked_BQH * own_keys).sum(dim=-1, keepdim=True)
        weights = torch.softmax(torch.cat([scores_BQR, own_BQ1], dim=-1), dim=-1)
        contexts_BQH = torch.bmm(weights[..., :-1], regions)
        return torch.addcmul(contexts_BQH, weights[..., -1:], own), weights


class AdditiveAttention(nn.Module):
    """Soft attention with the additive score: softmax over r of w tanh(U q + W v_r + b).

    Bahdanau et al. 2015; Xu et al. 2015, "Show, Attend and Tell", where it is f_att.
    """

    def __init__(self, query_width: int, region_width: int, score_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, score_size, bias=False)
        self.key = nn.Linear(region_width, score_size)  # once per image: the caller keeps it
        self.score = nn.Linear(score_size, 1, bias=False)

    def forward(self, queries: Tensor, regions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (B, Q, H) and weights (B, Q, R), each row of which sums to 1.

        Args:
            queries: (B, Q, query_width).
            regions: (B, R, H).
            keys: (B, R, A), ``key`` of the regions.
        """
        heard_BQRA = quick_tanh(self.query(queries).unsqueeze(2) + keys.unsqueeze(1))
        weights_BQR = torch.softmax(self.score(heard_BQRA).squeeze(-1), dim=-1)
        return torch.bmm(weights_BQR.to(regions.dtype), regions), weights_BQR


class RowsByImage:
    """Rows in any order, laid side by side for each image and put back.

    Images with fewer rows than the most are filled up with zeros, which come back nowhere.
    """

    def __init__(self, image_of_row: Tensor, images: int) -> None:
        """Args: ``image_of_row`` (N,) in 0..images-1."""
        counts_B = torch.bincount(image_of_row, minlength=images)
        self._images, self._most = images, int(counts_B.max())
        order_N = torch.argsort(image_of_row, stable=True)
        sorted_N = image_of_row[order_N]
        first_B = counts_B.cumsum(0) - counts_B
        place_N = torch.arange(len(order_N), device=order_N.device) - first_B[sorted_N]
        self._slots = torch.empty_like(order_N)
        self._slots[order_N] = sorted_N * self._most + place_N

    def group(self, rows: Tensor) -> Tensor:
        """Rows (N, ...), or the first n of them, as (B, G, ...), G being an image's most rows."""
        slots = rows.new_zeros(self._images * self._most, *rows.shape[1:])
        filled = slots.index_copy(0, self._slots[: len(rows)], rows)
        return filled.view(self._images, self._most, *rows.shape[1:])

    def ungroup(self, grouped: Tensor, count: int) -> Tensor:
        """Inverse of ``group``: (B, G, ...) back to the first ``count`` rows."""
        return grouped.flatten(0, 1).index_select(0, self._slots[:count])


def look_of_beams(attention: Attention, images: int) -> Look:
    """Rows of one image stand together, and all images have equally many."""

    def look(asking: Tensor) -> Tensor:
        return attention(asking.view(images, -1, asking.shape[1]))[0].flatten(0, 1)

    return look


def look_of_rows(attention: Attention, by_image: RowsByImage) -> Look:
    """Rows of images in any order, or the first of them."""

    def look(asking: Tensor) -> Tensor:
        return by_image.ungroup(attention(by_image.group(asking))[0], len(asking))

    return look


def look_of_one(attention: Attention, weights: list[Tensor]) -> Look:
    """One row of one image; each look adds its weights (1, R) to the list."""

    def look(asking: Tensor) -> Tensor:
        context_11H, weights_11R = attention(asking.unsqueeze(0))
        weights.append(weights_11R[0])
        return context_11H[0]

    return look
