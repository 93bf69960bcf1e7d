"""The processes of one training on this machine: started together, watched, and ended together.

The work is done by PyTorch's elastic agent, which is what ``torchrun`` is. On several machines
``torchrun`` or SLURM starts the processes instead, and this file is not used.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from showtell.cores import available_cores
from showtell.errors import UserError
from showtell.training.ranks import ASK_TO_END, SECONDS_TO_END


def launch(processes: int) -> None:
    """Run this very command in so many processes on this machine, and see them all end.

    Raises:
        UserError: one was killed; the others were ended.
        SystemExit: with its status, when one failed and said why, or when this process was asked
            to end, which is handed on to all.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Each would take all cores otherwise, and all would wait for each other.
    cores = available_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    # PyTorch's C++ warns of weights that might never be frozen, past every filter of warnings.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with TemporaryDirectory(prefix="showtell-") as folder:
        quiet = dict.fromkeys(range(1, processes), Std.ALL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.2,
            shutdown_timeout=SECONDS_TO_END + 5,
            signals_to_handle=",".join(each.name for each in ASK_TO_END),
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=quiet),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except SignalException as asked:
            sys.exit(128 + asked.sigval)
        except ChildFailedError as failed:
            _tell(failed, Path(folder), processes)


def _tell(failed: ChildFailedError, logs: Path, processes: int) -> None:
    """Say what ended the first process that failed, unless it did so itself."""
    rank, failure = failed.get_first_failure()
    if failure.exitcode < 0:
        raise UserError(
            f"process {rank} of {processes} (counted from 0) was killed by "
            f"{failure.signal_name()}, and the others were ended: if nobody killed it, memory ran "
            "out; go on with python train.py resume=RUN"
        )
    if rank > 0 and 0 not in failed.failures:
        for log in logs.glob(f"*/attempt_0/{rank}/stderr.log"):
            sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
    sys.exit(failure.exitcode)
