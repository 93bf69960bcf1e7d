"""One of the processes of a training, each with a device of its own: how it meets the others.

Each runs ``train.py`` with the same arguments; `launch` says who starts them. The process of rank 0
is the one that writes and speaks.
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

# What a process may take to save and end when it is asked to; then it is ended.
SECONDS_TO_END = 15
# How long a process whose partner is gone waits to be told so, before it reports what it saw.
SECONDS_TO_HEAR = 5
ASK_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def are_started() -> bool:
    """Whether this is one of several processes that somebody started together."""
    return _environment() is not None


def _environment() -> ClusterEnvironment | None:
    """What ``torchrun`` or SLURM tells a process of the others."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            found: ClusterEnvironment = kind()
            return found if found.world_size() > 1 else None
    return None


@contextmanager
def together(processes: int, *, on_gpus: bool) -> Iterator[None]:
    """Meet the other processes of this training, which work on what is done inside until they part.

    One process alone needs nobody. All but rank 0 fall silent.

    Raises:
        UserError: others were started than the configuration says.
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
    # Lightning guesses it from the environment when it is imported, which may be too early.
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


def part() -> None:
    """Need the other processes no more; all call it when the training is done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def blamed_rightly() -> Iterator[None]:
    """Wait a little before an error is told: it may be the echo of another process's death.

    Whoever started the processes knows, and asks this one to end meanwhile.
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
    """End this process when its starter is gone, or some time after it was asked to end.

    Its main thread may wait for a dead partner inside a library, where no signal handler runs and
    no exception is raised. Before the processes have ``met`` there is nothing to save.
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
                # Not a sleep: at its very end Python waits for dead partners and runs no thread.
                signal.alarm(SECONDS_TO_END)
                return
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the process of rank 0, which alone calls it."""
    values = [make() if rank() == 0 else None]
    if world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    (value,) = values
    return value  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """The ``value`` of every process, by rank."""
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
    """The largest ``value`` of any process."""
    if world_size() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    most = torch.tensor(value, device=device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return int(most)
