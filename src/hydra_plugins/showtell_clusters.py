"""Hydra's side of sweeps on clusters: the launchers of others, told where the sweep is.

Hydra imports every file of this package at each start: nothing heavy may be imported on top.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from showtell.errors import UserError


class ClusterLauncher(Launcher):
    """Hands the jobs of a sweep to the launcher of ``module``, which the ``extra`` installs.

    A job reads its own configuration anew, and would name the sweep's folder after its own
    overrides; it is told the folder.
    """

    module: ClassVar[str]
    name: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        try:
            launcher = getattr(importlib.import_module(self.module), self.name)
        except ImportError as error:
            raise UserError(
                f"hydra/launcher={self.extra} needs what is not installed ({error.name}): "
                f"pip install 'showtell[{self.extra}]'"
            ) from error
        self._launcher: Launcher = launcher(**options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Write the sweep's folder into what every job is told."""
        folder = Path(config.hydra.sweep.dir).resolve()
        with read_write(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        self._folder = folder
        self._launcher.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and wait for them.

        Raises:
            UserError: a job failed; the others went on.
        """
        try:
            return self._launcher.launch(job_overrides, initial_job_idx)
        except Exception as error:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(
                f"a job of the sweep failed; its log is below {self._folder}, and the same command "
                f"runs those again that are not finished ({reason})"
            ) from error


class SlurmLauncher(ClusterLauncher):
    """Jobs of a SLURM array, through submitit."""

    module = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
    name = "SlurmLauncher"
    extra = "slurm"


class RayLauncher(ClusterLauncher):
    """Tasks of a Ray cluster, or of a Ray on this machine."""

    module = "hydra_plugins.hydra_ray_launcher.ray_launcher"
    name = "RayLauncher"
    extra = "ray"
