"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch: the tests run in one process per core, and tensors this small are
# not worth a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real Flickr8k and known answers beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data beside the repository: {SHARED} is absent")
    return SHARED
