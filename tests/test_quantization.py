"""Weights in bytes: what is lost, what is not, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from showtell.errors import UserError
from showtell.quantization import LEAST_WIDTH, dequantize_state, quantize, quantize_state
from showtell.vision.weights import load_state


def test_a_row_by_hand() -> None:
    """The largest of a row is 127 steps, whatever its sign; a row of zeros stays one."""
    bytes_RW, steps_R1 = quantize(torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0], [1, 2, -4]]))
    assert bytes_RW.tolist() == [[127, -50, 0], [0, 0, 0], [32, 64, -127]]
    assert steps_R1.flatten().tolist() == pytest.approx([0.01, 0.0, 4 / 127], abs=1e-7)


def test_no_number_moves_by_more_than_half_a_step() -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        "matrix": torch.randn(7, 40, generator=generator),
        "kernel": torch.randn(5, 8, 3, 3, generator=generator),
        "bias": torch.randn(7, generator=generator),
        "narrow": torch.randn(6, LEAST_WIDTH - 1, generator=generator),
        "counter": torch.tensor(3),
    }
    kept = quantize_state(state)
    assert {name for name, tensor in kept.items() if tensor.dtype == torch.int8} == {
        "matrix",
        "kernel",
    }
    restored = dequantize_state(kept)
    assert restored.keys() == state.keys()
    for name in ("matrix", "kernel"):
        steps = state[name].abs().flatten(1).amax(dim=1) / 127
        wrong = (restored[name] - state[name]).abs().flatten(1).amax(dim=1)
        assert (wrong <= steps / 2 * 1.0001).all()
        assert (wrong > 0).any()
    for name in ("bias", "narrow"):
        assert torch.equal(restored[name], state[name].half())
    assert restored["counter"] == 3
    # What has been rounded once is not moved again.
    again = dequantize_state(quantize_state(restored))
    for name, tensor in restored.items():
        torch.testing.assert_close(again[name].to(tensor.dtype), tensor, rtol=1e-6, atol=0)


def test_another_state_stays_what_it_is() -> None:
    state = {"weight": torch.ones(3, 50), "bias": torch.zeros(3)}
    assert dequantize_state(state) == state


@pytest.mark.parametrize(
    "changes",
    [
        {"matrix.steps": torch.ones(6, 1)},
        {"matrix": torch.ones(7, 40)},
        {"other.steps": torch.ones(7, 1)},
        {"matrix": torch.tensor(1, dtype=torch.int8), "matrix.steps": torch.ones(())},
        {"other": torch.ones(7, 40, dtype=torch.int8)},
    ],
)
def test_bytes_and_steps_that_do_not_belong_together_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor]
) -> None:
    state = {**quantize_state({"matrix": torch.ones(7, 40)}), **changes}
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=r"damaged .*(fits no tensor in bytes|has lost its steps)"):
        load_state(tmp_path / "file.safetensors")


def test_a_state_dict_has_names_of_text(tmp_path: Path) -> None:
    torch.save({1: torch.ones(2)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="not a dictionary of named tensors"):
        load_state(tmp_path / "file.pth")
