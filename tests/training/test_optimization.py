"""Clipping, and what a step of the optimizer must not do."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import nn

from showtell.config import compose
from showtell.parts import Settings
from showtell.training.optimization import clip_gradients


def parameters(*gradients: list[float] | None) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(2)) for _ in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return found


@pytest.mark.parametrize(
    ("largest", "share"), [(20.0, 1.0), (13.0, 1.0), (6.5, 0.5), (0.013, 0.001)]
)
def test_gradients_are_scaled_to_the_largest_norm_and_never_up(
    largest: float, share: float
) -> None:
    given = parameters([3.0, 4.0], None, [0.0, -12.0])  # norm 13
    clip_gradients(iter(given), largest)
    expected = [torch.tensor([3.0, 4.0]) * share, torch.tensor([0.0, -12.0]) * share]
    found = [each.grad for each in given if each.grad is not None]
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)


def test_gradients_that_are_no_numbers_do_not_pass_as_small_ones() -> None:
    (given,) = parameters([math.nan, 1.0])
    clip_gradients([given], 1.0)
    assert given.grad is not None
    assert given.grad.isnan().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be asked about")
def test_a_step_does_not_look_for_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning has it
    optimizer = Settings.of(compose([])).optimization.optimizer(nn.Linear(2, 2))
    asked = []
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: asked.append("driver") or 0)
    optimizer.step()
    assert asked == []
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    optimizer.step()
    assert asked == ["driver"]  # else this test would show nothing
