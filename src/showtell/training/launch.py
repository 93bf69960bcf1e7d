"""The processes of one training on this machine: started together, watched, and ended together.

PyTorch's elastic agent does the work, as it does for ``torchrun``. On several machines ``torchrun``
or SLURM starts the processes instead, and this module is not used.
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
    """Run the current command in ``processes`` processes on this machine, and wait for them.

    Raises:
        UserError: a process was killed; the others were ended.
        SystemExit: a process failed with a message of its own (exits with its status), or a signal
            asked this process to end, which was passed on to all (128 + signal number).
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Otherwise each would use all cores, and they would slow each other down.
    cores = available_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    # DDP's C++ code warns when no weights turn out to be frozen, past Python's warning filters.
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
    """Report why the first failed process ended, unless it did so itself, and exit."""
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
