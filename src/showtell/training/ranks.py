"""Distributed training as one of its processes sees it: joining the others, exchanging values.

Each process has a device of its own and runs ``train.py`` with the same arguments; `launch` says
what starts them. Only rank 0 writes files and prints.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, distributed

from showtell.errors import UserError

T = TypeVar("T")

# How long a process may take to save and end after a signal; then it is killed.
SECONDS_TO_END = 15
# How long a process delays an error: see `delayed_errors`.
SECONDS_TO_HEAR = 5
ASK_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def are_started() -> bool:
    """Whether ``torchrun``, `launch` or SLURM started this process together with others."""
    return _environment() is not None


def _environment() -> ClusterEnvironment | None:
    """What ``torchrun`` or SLURM tells about the other processes; None if there are none."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            found: ClusterEnvironment = kind()
            return found if found.world_size() > 1 else None
    return None


@contextmanager
def joined_process_group(processes: int, *, on_gpus: bool) -> Iterator[None]:
    """Join the process group of this training and run the body in all ranks.

    `leave_process_group` leaves the group. With one process it does nothing. All ranks but 0 are
    silenced.

    Raises:
        UserError: the number of processes started is not ``processes``.
    """
    if processes == 1:
        yield
        return
    environment = _environment()
    started = 1 if environment is None else environment.world_size()
    if environment is None or started != processes:
        raise UserError(
            f"trainer.devices x trainer.num_nodes is {processes}, but {started} "
            f"{'process was' if started == 1 else 'processes were'} started: ask torchrun or srun "
            "for one process a device"
        )
    met = threading.Event()
    _watch(met)
    # Lightning reads the rank from the environment at import, which may be too early.
    rank_zero_only.rank = environment.global_rank()  # type: ignore[attr-defined]
    if environment.global_rank() > 0:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        warnings.simplefilter("ignore")
    if on_gpus:
        torch.cuda.set_device(environment.local_rank())
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo", rank=environment.global_rank(), world_size=processes
    )
    met.set()
    yield


def leave_process_group() -> None:
    """Leave the process group; all processes call it when the training is done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def delayed_errors() -> Iterator[None]:
    """Delay errors by `SECONDS_TO_HEAR`: they may only be the echo of another process's death.

    Whatever started the processes notices that death and meanwhile asks this one to end. A
    `UserError` is not delayed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception:
        if world_size() > 1:
            time.sleep(SECONDS_TO_HEAR)
        raise


def _watch(met: threading.Event) -> None:
    """End this process when its parent is gone, or `SECONDS_TO_END` after it was asked to end.

    Its main thread may be waiting for a dead partner inside a library, where no signal handler runs
    and no exception is raised. Before the processes have ``met`` there is nothing to save, and it
    ends at once.
    """
    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    starter = os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            if select.select([heard], [], [], 1.0)[0] and set(os.read(heard, 64)) & set(ASK_TO_END):
                if not met.is_set():
                    break
                # No sleep in this thread: at exit Python may wait for dead partners after it has
                # stopped running threads.
                signal.alarm(SECONDS_TO_END)
                return
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def rank() -> int:
    """The rank of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def from_first(make: Callable[[], T]) -> T:
    """The result of ``make``, called on rank 0 only and broadcast to all."""
    values = [make() if rank() == 0 else None]
    if world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    (value,) = values
    return value  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """The ``value`` of every process, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def summed(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes; no gradient flows through it."""
    total = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total


def largest(value: int) -> int:
    """The maximum of ``value`` over all processes."""
    if world_size() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    most = torch.tensor(value, device=device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return int(most)
