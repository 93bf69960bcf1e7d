"""Slots that jobs run in: a GPU, or a share of the cores on machines without GPUs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from showtell.cores import available_cores
from showtell.errors import UserError
from showtell.locks import open_locked

# A training of Flickr8k takes half of it; more jobs than fit would run out of memory.
BYTES_PER_CPU_SLOT = 2 * 2**30
# Environment variables from which libraries take their number of threads.
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one job at a time.

    Attributes:
        name: ``cpu-0``, or the GPU's id and a number; the same in all sweeps.
        environment: environment variables of its jobs: the GPU they see, and thread counts.
    """

    name: str
    environment: Mapping[str, str]

    def take(self) -> BinaryIO | None:
        """Lock the slot, for a job to inherit the lock; None while a job of any sweep has it."""
        return open_locked(_lock_folder() / f"{self.name}.lock")


def _lock_folder() -> Path:
    """The lock folder shared by all sweeps of this user on this machine; never on a shared disk.

    Raises:
        UserError: it cannot be made, or is not a folder of this user: somebody else could keep all
            jobs waiting, or have them write through a link.
    """
    folder = Path(tempfile.gettempdir()) / f"showtell-slots-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}): make room there, or set TMPDIR to a "
            "folder of your own"
        ) from error
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(
            f"{folder} is not a folder of yours: have it removed, or set TMPDIR to a folder of "
            "your own"
        )
    if found.st_mode & 0o077:  # made by an earlier version
        folder.chmod(0o700)
    return folder


def find_slots(*, on_gpus: bool, jobs_per_gpu: int, cpu_slots: int | None) -> list[Slot]:
    """The slots of this machine: ``jobs_per_gpu`` per GPU, or ``cpu_slots`` without GPUs.

    ``cpu_slots`` None means as many as fit cores and memory. Unless ``on_gpus``, GPUs are hidden
    from the jobs.
    """
    gpus = visible_gpus() if on_gpus else []
    names = [f"{gpu}-{n}" for n in range(jobs_per_gpu) for gpu in gpus]
    seen = [gpu for _ in range(jobs_per_gpu) for gpu in gpus]
    if not gpus:
        names = [f"cpu-{n}" for n in range(cpu_slots or _fitting_cpu_slots())]
        seen = [""] * len(names)
    threads = str(max(1, available_cores() // len(names)))
    # Thread counts that the user has set are respected.
    counts = {name: os.environ.get(name, threads) for name in THREAD_COUNTS}
    return [
        Slot(name, {"CUDA_VISIBLE_DEVICES": gpu, **counts})
        for name, gpu in zip(names, seen, strict=True)
    ]


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use; asks the driver, not PyTorch, for speed."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return choose_gpus(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def choose_gpus(listing: str, wanted: str | None) -> list[str]:
    """The GPU ids in the output of ``nvidia-smi -L`` that ``CUDA_VISIBLE_DEVICES`` selects.

    ``wanted`` is the value of that variable; None selects all. If a GPU is partitioned (MIG), only
    partitions count, because CUDA sees nothing else. As in CUDA, the first entry that names no GPU
    ends the list.
    """
    ids = re.findall(r"\(UUID: ((?:GPU|MIG)-[^)\s]+)\)", listing)
    gpus = [gpu for gpu in ids if gpu.startswith("MIG-")] or ids
    if wanted is None:
        return gpus
    chosen: list[str] = []
    for entry in wanted.split(","):
        name = entry.strip()
        if name.isdecimal():
            named = gpus[int(name) : int(name) + 1]
        else:
            named = [gpu for gpu in gpus if name and gpu.startswith(name)]
        if len(named) != 1:
            break
        chosen += named
    return chosen


def _fitting_cpu_slots() -> int:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(available_cores(), memory // BYTES_PER_CPU_SLOT))
