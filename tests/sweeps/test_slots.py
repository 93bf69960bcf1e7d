"""Slots: which GPUs, how many at once, and locks that outlive whoever took them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from showtell.errors import UserError
from showtell.locks import open_locked
from showtell.sweeps import slots
from showtell.sweeps.slots import choose_gpus, find_slots

LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb-2)
GPU 2: NVIDIA H200 (UUID: GPU-bbcc-3)
"""
DIVIDED = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)
  MIG 1g.18gb     Device  0: (UUID: MIG-1111)
  MIG 1g.18gb     Device  1: (UUID: MIG-2222)
"""


@pytest.mark.parametrize(
    ("listing", "wanted", "expected"),
    [
        (LISTING, None, ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbcc-3"]),
        (LISTING, "2,0", ["GPU-bbcc-3", "GPU-aaaa-1"]),
        (LISTING, "GPU-bbc", ["GPU-bbcc-3"]),
        (LISTING, "GPU-bb", []),  # two begin so
        (LISTING, "0,7,1", ["GPU-aaaa-1"]),  # as CUDA reads it
        (LISTING, "", []),
        (LISTING, "-1", []),
        (DIVIDED, None, ["MIG-1111", "MIG-2222"]),
        (DIVIDED, "1", ["MIG-2222"]),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", None, []),
    ],
)
def test_gpus_are_those_cuda_would_show(
    listing: str, wanted: str | None, expected: list[str]
) -> None:
    assert choose_gpus(listing, wanted) == expected


def test_jobs_spread_over_gpus_before_they_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "visible_gpus", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(slots, "available_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    found = find_slots(on_gpus=True, jobs_per_gpu=2, cpu_slots=5)
    assert [slot.name for slot in found] == ["GPU-a-0", "GPU-b-0", "GPU-a-1", "GPU-b-1"]
    assert found[1].environment == {
        "CUDA_VISIBLE_DEVICES": "GPU-b",
        "OMP_NUM_THREADS": "4",
        "MKL_NUM_THREADS": "3",
    }
    hidden = find_slots(on_gpus=False, jobs_per_gpu=2, cpu_slots=5)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in hidden] == [""] * 5


def test_as_many_cpu_slots_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "available_cores", lambda: 8)
    for gibibytes, expected in ((64, 8), (8, 4), (1, 1)):
        sizes = {"SC_PHYS_PAGES": gibibytes * 2**18, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(slots.os, "sysconf", sizes.__getitem__)
        assert len(find_slots(on_gpus=False, jobs_per_gpu=1, cpu_slots=None)) == expected


@pytest.mark.parametrize("trap", ["link", "file", "foreign"])
def test_slots_are_not_shared_with_other_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (slot,) = find_slots(on_gpus=False, jobs_per_gpu=1, cpu_slots=1)
    mine = tmp_path / f"showtell-slots-{os.getuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir()
        mine.symlink_to(tmp_path / "elsewhere")
    elif trap == "file":
        mine.touch()
    else:
        other = os.getuid() + 1
        (tmp_path / f"showtell-slots-{other}").mkdir()
        monkeypatch.setattr(slots.os, "getuid", lambda: other)
    with pytest.raises(UserError, match=r"is not a folder of yours: have it removed, or set TMPD"):
        slot.take()


def test_the_folder_of_the_slots_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, again = (
        slot for _ in "12" for slot in find_slots(on_gpus=False, jobs_per_gpu=1, cpu_slots=1)
    )
    lock = first.take()
    assert lock is not None
    with lock:
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert again.take() is None
        folder.chmod(0o777)  # as an earlier version left it
        assert again.take() is None
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_lock_lives_as_long_as_a_process_that_inherited_it(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "a.lock"
    lock = open_locked(file)
    assert lock is not None
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    assert open_locked(file) is None
    lock.close()
    assert open_locked(file) is None
    child.kill()
    child.wait()
    again = open_locked(file)
    assert again is not None
    again.close()
