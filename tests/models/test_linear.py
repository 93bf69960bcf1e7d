"""Aligned products: laid out otherwise, and otherwise PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from showtell.models.linear import ALIGNMENT, AlignedLinear, aligned_linear, aligned_product


@pytest.mark.parametrize("columns", [1, 16, 17, 250])
def test_it_is_the_product_and_each_row_begins_aligned(columns: int) -> None:
    left, right = torch.randn(7, 5), torch.randn(5, columns)
    product = aligned_product(left, right)
    torch.testing.assert_close(product, left @ right)
    assert product.stride(0) % ALIGNMENT == 0
    assert product.stride(1) == 1


def test_the_layer_is_a_linear_one_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    layer = AlignedLinear(5, 11).double()
    inputs = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(
        layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias)
    )
    assert torch.autograd.gradcheck(aligned_linear, (inputs, layer.weight, layer.bias))
    assert layer.state_dict().keys() == nn.Linear(5, 11).state_dict().keys()


def test_reduced_precision_is_left_to_pytorch() -> None:
    layer, inputs = AlignedLinear(5, 11), torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
