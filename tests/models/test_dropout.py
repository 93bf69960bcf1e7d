"""Locked dropout: one mask per row, the expected value kept."""

from __future__ import annotations

import pytest
import torch

from showtell.models.dropout import LockedDropout
from showtell.models.positions import RealPositions


def test_the_positions_of_a_row_share_its_mask() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([3, 1, 5])
    positions = RealPositions.of(lengths, torch.device("cpu"))
    dropped = LockedDropout(0.5)(torch.ones(9, 40), positions)
    rows = dropped.split(lengths.tolist())
    assert all((row == row[0]).all() for row in rows)
    assert not (rows[0][0] == rows[1][0]).all()
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_regions_share_the_mask_of_their_image() -> None:
    torch.manual_seed(0)
    dropped = LockedDropout(0.5)(torch.ones(2, 7, 40))
    assert (dropped == dropped[:, :1]).all()
    assert not (dropped[0] == dropped[1]).all()


def test_the_expected_value_is_kept() -> None:
    torch.manual_seed(0)
    dropped = LockedDropout(0.3)(torch.full((1000, 200), 2.0))
    assert dropped.mean().item() == pytest.approx(2.0, abs=0.02)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_the_rate_is_kept_in_bfloat16() -> None:
    torch.manual_seed(0)
    dropped = LockedDropout(0.003)(torch.ones(1000, 1000, dtype=torch.bfloat16))
    assert dropped.dtype == torch.bfloat16
    assert (dropped == 0).float().mean().item() == pytest.approx(0.003, rel=0.1)


def test_nothing_is_dropped_outside_training_or_at_rate_zero() -> None:
    inputs = torch.randn(4, 5)
    assert LockedDropout(0.5).eval()(inputs) is inputs
    assert LockedDropout(0.0)(inputs) is inputs
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        LockedDropout(1.0)
