"""Hydra launcher for sweeps on this machine; ``showtell.sweeps`` runs the jobs.

Hydra imports every file of this package at each start, so nothing heavy may be imported at the top.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from showtell.config import quoted
from showtell.errors import UserError


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep on this machine, each in its own process, on a GPU or CPU slot.

    ``conf/hydra/launcher/local_gpus.yaml`` explains the arguments.
    """

    def __init__(
        self,
        *,
        jobs_per_gpu: int,
        cpu_slots: int | None,
        job_timeout_minutes: float | None,
        silent_minutes: float | None,
    ) -> None:
        super().__init__()
        self._jobs_per_gpu = jobs_per_gpu
        self._cpu_slots = cpu_slots
        self._job_timeout_minutes = job_timeout_minutes
        self._silent_minutes = silent_minutes

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check the options; ``task_function`` is not called, since jobs are processes.

        Raises:
            UserError: an option has an invalid value; raised here because Hydra wraps errors of the
                constructor.
        """
        _check_number("jobs_per_gpu", self._jobs_per_gpu, whole=True)
        for name, value in (
            ("cpu_slots", self._cpu_slots),
            ("job_timeout_minutes", self._job_timeout_minutes),
            ("silent_minutes", self._silent_minutes),
        ):
            if value is not None:
                _check_number(name, value, whole=name == "cpu_slots")
        self._loader = hydra_context.config_loader
        self._config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs that are not finished, and print what became of all.

        Raises:
            UserError: a job's configuration has a mistake; raised before any job starts.
        """
        from showtell.sweeps.driver import Driver, Limits, summary
        from showtell.sweeps.record import open_sweep
        from showtell.sweeps.slots import find_slots

        configs = [self._resolved(overrides) for overrides in job_overrides]
        folder = Path(self._config.hydra.sweep.dir)
        command = [str(word) for word in self._config.hydra.overrides.task]
        slots = find_slots(
            on_gpus=any(config["trainer"]["accelerator"] != "cpu" for config in configs),
            jobs_per_gpu=self._jobs_per_gpu,
            cpu_slots=self._cpu_slots,
        )
        program = [sys.executable, sys.argv[0], *self._search_path()]
        if configs[0]["tracking"]["group"] is None:
            program.append(f"tracking.group={quoted(folder.name)}")
        with open_sweep(folder, command) as sweep:
            jobs = [
                sweep.add(overrides, [word for word in overrides if word not in command])
                for overrides in job_overrides
            ]
            Driver(
                sweep,
                program,
                slots,
                Limits(
                    total=_seconds(self._job_timeout_minutes), silent=_seconds(self._silent_minutes)
                ),
                [Path(configs[0]["features"]["root"])],
                lambda line: print(line, flush=True),
            ).run(jobs)
            print(*summary(sweep, jobs), f"sweep: {folder}", sep="\n", flush=True)
        failed = sum(job.status == "failed" for job in jobs)
        problem = UserError(
            f"{failed} of {len(jobs)} jobs failed; the same command runs those again"
        )
        return [
            JobReturn(job.overrides, status=JobStatus.COMPLETED)
            if job.status == "finished"
            else FailedJob(job.overrides, problem)
            for job in jobs
        ]

    def _search_path(self) -> list[str]:
        """The options with which Hydra finds the user's own configurations, for every job."""
        sources = self._config.hydra.runtime.config_sources
        folders = [each.path for each in sources if each.provider == "command-line"]
        overrides = self._config.hydra.overrides.hydra
        return [
            *(f"--config-dir={folder}" for folder in folders),
            *(each for each in overrides if each.startswith("hydra.searchpath=")),
        ]

    def _resolved(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The checked configuration of one job."""
        from showtell.config import resolve

        composed = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(composed):
            del composed["hydra"]
        config = resolve(composed)
        if config["output"]["folder"] is not None:
            raise UserError("output.folder is one folder: a sweep (-m) makes one for each run")
        if config["trainer"]["devices"] * config["trainer"]["num_nodes"] > 1:
            raise UserError(
                f"trainer.devices={config['trainer']['devices']}: a run of a sweep on this machine "
                "has one device; the sweep fills the others with its other runs"
            )
        if config["resume"] is not None:
            raise UserError("resume is for one run: a sweep goes on when its command is run again")
        return config


def _check_number(name: str, value: object, *, whole: bool) -> None:
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or value <= 0:
        wanted = "a whole number" if whole else "a number"
        raise UserError(f"hydra.launcher.{name}={value}: must be {wanted} above 0")


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


class FailedJob(JobReturn):
    """The result of a failed job for Hydra's sweepers; its cause has been printed."""

    def __init__(self, overrides: Sequence[str], problem: UserError) -> None:
        super().__init__(overrides, status=JobStatus.FAILED)
        self._problem = problem

    @property  # type: ignore[misc]  # nobody sets it
    def return_value(self) -> Any:
        """There is none.

        Raises:
            UserError: always.
        """
        raise self._problem
