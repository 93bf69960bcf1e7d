"""Attention against a loop over regions, and rows laid side by side by image."""

from __future__ import annotations

import math

import pytest
import torch

from showtell.models.regions import AdditiveAttention, RegionAttention, RowsByImage

B, Q, R, H = 2, 3, 4, 5


def test_attention_is_the_formula_region_by_region() -> None:
    torch.manual_seed(0)
    attention = RegionAttention(6, H)
    queries, regions = torch.randn(B, Q, 6), torch.randn(B, R, H)
    contexts, weights = attention(queries, regions)
    for b in range(B):
        for q in range(Q):
            asked = attention.query.weight @ queries[b, q]
            scores = [(asked @ regions[b, r]).item() / math.sqrt(H) for r in range(R)]
            total = sum(math.exp(score) for score in scores)
            expected = torch.tensor([math.exp(score) / total for score in scores])
            torch.testing.assert_close(weights[b, q], expected)
            seen = sum(expected[r] * regions[b, r] for r in range(R))
            torch.testing.assert_close(contexts[b, q], seen)


def test_additive_attention_is_the_formula_region_by_region() -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(6, H, 3)
    queries, regions = torch.randn(B, Q, 6), torch.randn(B, R, H)
    contexts, weights = attention(queries, regions, attention.key(regions))
    for b in range(B):
        for q in range(Q):
            asked = attention.query.weight @ queries[b, q] + attention.key.bias
            heard = [torch.tanh(asked + attention.key.weight @ v) for v in regions[b]]
            scores = torch.stack([attention.score.weight[0] @ each for each in heard])
            expected = torch.exp(scores) / torch.exp(scores).sum()
            torch.testing.assert_close(weights[b, q], expected)
            torch.testing.assert_close(contexts[b, q], expected @ regions[b])


def test_a_sentinel_is_one_more_region_to_its_query() -> None:
    torch.manual_seed(0)
    attention = RegionAttention(6, H)
    queries, regions = torch.randn(B, Q, 6), torch.randn(B, R, H)
    keys, sentinels = torch.randn(2, B, Q, H)
    contexts, weights = attention.with_sentinel(queries, regions, keys, sentinels)
    for b in range(B):
        for q in range(Q):
            asked = attention.query.weight @ queries[b, q] / math.sqrt(H)
            heard = torch.cat([regions[b], keys[b, q : q + 1]]) @ asked
            expected = torch.softmax(heard, dim=0)
            torch.testing.assert_close(weights[b, q], expected)
            seen = expected @ torch.cat([regions[b], sentinels[b, q : q + 1]])
            torch.testing.assert_close(contexts[b, q], seen)


def test_weights_are_shares_however_large_the_scores() -> None:
    torch.manual_seed(0)
    attention = RegionAttention(H, H)
    _, weights = attention(1e4 * torch.randn(B, Q, H), torch.randn(B, R, H))
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(B, Q))


def test_a_region_like_the_others_is_seen_as_they_are() -> None:
    regions = torch.ones(1, R, H) * torch.arange(H)
    contexts, weights = RegionAttention(H, H)(torch.randn(1, Q, H), regions)
    torch.testing.assert_close(weights, torch.full((1, Q, R), 1 / R))
    torch.testing.assert_close(contexts, torch.arange(H).float().expand(1, Q, H))


def test_rows_stand_by_image_in_their_order_and_come_back() -> None:
    by_image = RowsByImage(torch.tensor([2, 0, 2, 2, 0]), images=4)
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]], requires_grad=True)
    grouped = by_image.group(rows)
    expected = [[2, 5, 0], [0, 0, 0], [1, 3, 4], [0, 0, 0]]
    assert grouped.squeeze(-1).tolist() == expected
    assert by_image.ungroup(grouped, 5).tolist() == rows.tolist()
    (grouped * 2).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[2.0]] * 5


@pytest.mark.parametrize("seed", range(5))
def test_grouping_is_undone_whatever_the_order(seed: int) -> None:
    torch.manual_seed(seed)
    rows, image_of_row = torch.randn(9, 2, 3), torch.randint(0, 4, (9,))
    by_image = RowsByImage(image_of_row, images=4)
    grouped = by_image.group(rows)
    torch.testing.assert_close(by_image.ungroup(grouped, 9), rows)
    some = by_image.group(rows[:6])
    assert some.shape == grouped.shape
    torch.testing.assert_close(by_image.ungroup(some, 6), rows[:6])
    for image in range(4):
        own = rows[image_of_row == image]
        torch.testing.assert_close(grouped[image, : len(own)], own)
