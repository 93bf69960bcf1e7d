"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real Flickr8k and known answers beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data beside the repository: {SHARED} is absent")
    return SHARED
