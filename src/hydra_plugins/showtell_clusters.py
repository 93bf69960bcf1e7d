"""Hydra launchers for sweeps on clusters: SLURM through submitit's launcher, and Ray.

Hydra imports every file of this package at each start, so nothing heavy may be imported at the top.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from hydra_plugins.showtell_launcher import FailedJob
from showtell.config import quoted
from showtell.errors import UserError


class SlurmLauncher(Launcher):
    """Hands the jobs of a sweep to submitit's launcher, as jobs of a SLURM array.

    A job composes its configuration anew and would name the sweep's folder after its own overrides,
    so it is given the folder.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Set up submitit's launcher, and add the sweep's folder to every job's overrides.

        Raises:
            UserError: submitit's launcher is missing; raised here because Hydra wraps errors of the
                constructor.
        """
        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import (
                SlurmLauncher as Submitit,
            )
        except ImportError as error:
            raise _missing("slurm", error) from error
        self._launcher = Submitit(**self._options)
        self._folder = Path(config.hydra.sweep.dir).resolve()
        with read_write(config):
            config.hydra.overrides.hydra.append(_sweep_dir(self._folder))
        self._launcher.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, wait for them and print which failed.

        Raises:
            UserError: SLURM did not accept the jobs, or lost one.
        """
        try:
            returns = self._launcher.launch(job_overrides, initial_job_idx)
        except Exception as error:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(
                f"SLURM did not run all jobs; their logs are below {self._folder / '.submitit'}, "
                f"and the same command runs those again that are not finished ({reason})"
            ) from error
        return _told(job_overrides, [_cause(each) for each in returns])


class RayLauncher(Launcher):
    """Runs each job of a sweep as a Ray task: the command a person would type, in a process.

    ``conf/hydra/launcher/ray.yaml`` explains the arguments.
    """

    def __init__(self, *, address: str, cpus: float, gpus: float, retries: int) -> None:
        super().__init__()
        self._address = address
        self._needs = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Prepare the command of a job; ``task_function`` is not called, since jobs are processes.

        Raises:
            UserError: Ray is missing; raised here because Hydra wraps errors of the constructor.
        """
        try:
            import ray
        except ImportError as error:
            raise _missing("ray", error) from error
        self._ray: Any = ray
        self._folder = Path(config.hydra.sweep.dir).resolve()
        sources = config.hydra.runtime.config_sources
        self._program = [
            *(sys.executable, str(Path(sys.argv[0]).resolve()), "--multirun"),
            *(f"--config-dir={each.path}" for each in sources if each.provider == "command-line"),
            *("hydra/launcher=basic", "hydra/sweeper=basic", _sweep_dir(self._folder)),
        ]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, wait for them and print which failed.

        Raises:
            UserError: the cluster cannot be reached.
        """
        self._connect()
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        run = self._ray.remote(**self._needs)(run_command)
        tasks = [
            run.remote([*self._program, *overrides], logs / f"{number:04}.log", Path.cwd())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        return _told(job_overrides, [self._outcome(task) for task in tasks])

    def _connect(self) -> None:
        """Join the cluster, or start a Ray on this machine."""
        if self._ray.is_initialized():  # by an earlier launch of the same sweep
            return
        try:
            self._ray.init(address=self._address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"hydra.launcher.address={self._address}: {' '.join(str(error).split())}"
            ) from error

    def _outcome(self, task: Any) -> str | None:
        """Wait for a task; why it failed, None if it did not."""
        try:
            cause: str | None = self._ray.get(task)
        except self._ray.exceptions.RayError as error:  # its machine was lost too often
            return " ".join(str(error).split())[-300:]
        return cause


def run_command(command: Sequence[str], log: Path, folder: Path) -> str | None:
    """Run ``command`` in ``folder``; why it failed, None if it did not.

    Ray calls this on the machine that it chose, with the GPUs that it assigned.
    """
    from showtell.sweeps.causes import cause_of

    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait()
        finally:  # if asked to end, end the training too, which saves its state
            process.terminate()
    return None if status == 0 else f"{cause_of(status, log, start=start)} ({log})"


def _sweep_dir(folder: Path) -> str:
    """The override that sets the sweep's folder, quoted for Hydra."""
    return f"hydra.sweep.dir={quoted(str(folder))}"


def _missing(extra: str, error: ImportError) -> UserError:
    return UserError(
        f"hydra/launcher={extra} needs what is not installed ({error.name}): "
        f"pip install 'showtell[{extra}]'"
    )


def _cause(returned: JobReturn) -> str | None:
    """Why a job that Hydra ran failed; None if it did not."""
    try:
        _ = returned.return_value
    except Exception as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def _told(
    job_overrides: Sequence[Sequence[str]], causes: Sequence[str | None]
) -> Sequence[JobReturn]:
    """Print what became of the jobs; return it as Hydra's sweepers expect it."""
    failed = sum(cause is not None for cause in causes)
    problem = UserError(f"{failed} of {len(causes)} jobs failed; the same command runs those again")
    returns = []
    for overrides, cause in zip(job_overrides, causes, strict=True):
        if cause is None:
            returns.append(JobReturn(list(overrides), status=JobStatus.COMPLETED))
            continue
        print(f"FAILED    {' '.join(overrides)}: {cause}")
        returns.append(FailedJob(list(overrides), problem))
    print(f"{len(causes) - failed} of {len(causes)} jobs finished")
    return returns
