"""Train a captioner: ``python train.py model=lstm_glove``; ``conf/`` says what else can change."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from showtell.config import (
    CHANGEABLE_ON_RESUME,
    build,
    compose_unchecked,
    explain,
    overview,
    resolve,
    saved_config,
    sweep_name,
)
from showtell.errors import UserError
from showtell.search import as_overrides, join, place


def run(composed: DictConfig) -> Path | None:
    """Train anew, or continue the run that ``resume`` names; return the run folder.

    None where other processes do it, and the first of them says so.
    """
    job = HydraConfig.get()
    if composed.search.trial is not None:
        folder = composed.output.folder
        sweep = Path(job.sweep.dir) if folder is None else Path(folder).parent
        values = join(*place(composed.search, sweep)).values
        composed = compose_unchecked([*job.overrides.task, *as_overrides(values)])
    choices = job.runtime.choices
    composed.name = composed.name or "-".join(choices.get(g, g) for g in ("model", "data"))
    if job.mode is RunMode.MULTIRUN:
        if composed.output.folder is not None:
            raise UserError("output.folder is one folder: a sweep (-m) makes one for each run")
        composed.output.root = job.sweep.dir
        composed.tracking.group = composed.tracking.group or Path(job.sweep.dir).name
    # Whatever is wrong with the configuration or the data set is told before torch is imported,
    # which takes seconds.
    if composed.resume is None:
        config = resolve(composed)
        if job.mode is RunMode.MULTIRUN:
            from showtell.runs import find_run

            begun = find_run(Path(job.sweep.dir), config)
            if begun is not None:  # the job was queued again, or the sweep's command given again
                return go_on(begun, [])
        data = build("data", config["data"])
        if launched(config["trainer"]):
            return None
        from showtell.experiment import train

        gc.enable()
        return train(config, data)
    overrides = [o for o in job.overrides.task if not o.startswith("resume=")]
    return go_on(Path(composed.resume), overrides)


def go_on(folder: Path, overrides: Sequence[str]) -> Path | None:
    """Continue the run in ``folder``, or leave it as it is if it finished within a sweep."""
    config = saved_config(folder / "config.yaml", overrides, CHANGEABLE_ON_RESUME)
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        from showtell.runs import read_record

        if read_record(folder).get("status") == "finished":
            return folder
    data = build("data", config["data"])
    if launched(config["trainer"]):
        return None
    from showtell.experiment import resume

    gc.enable()
    return resume(folder, config, data)


def launched(trainer: Mapping[str, Any]) -> bool:
    """Whether this process has had others train, one for each device, and seen them end."""
    if trainer["devices"] * trainer["num_nodes"] == 1:
        return False
    from showtell.training.ranks import are_started

    if are_started():
        return False
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise UserError(
            f"trainer.devices={trainer['devices']}: a run of a sweep on this machine has one "
            "device; the sweep fills the others with its other runs"
        )
    if trainer["num_nodes"] > 1:
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: start the processes of several machines "
            "with torchrun or srun, as docs/clusters.md shows"
        )
    from showtell.training.launch import launch

    launch(trainer["devices"])
    return True


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(composed: DictConfig) -> None:
    """One training, or one of a sweep; prints the run folder last."""
    try:
        folder = run(composed)
    except UserError as error:
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            sys.exit(f"error: {error}")
        # Told at once; the sweep goes on with its other jobs, and Hydra raises this at its end.
        print(f"error: {error}", file=sys.stderr)
        raise
    if folder is not None:
        print(f"run: {folder}")


def main() -> None:
    """Run the command line; what the user can mend is one sentence and status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing its own pages
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as Ctrl-C: through every `finally`
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # Hydra, the captions and PyTorch make a million small objects and no rubbish until the training
    # begins: looking for it takes a sixth of the start.
    gc.disable()
    atexit.register(gc.freeze)  # nor at the end, when what is left goes with the process: a second
    words = sys.argv[1:]
    try:
        if {"-h", "--help"} & set(words):
            # Hydra's own page takes it twice the time, most of it to list the parts of Hydra.
            print(overview([word for word in words if not word.startswith("-")]))
            return
        # Cached: the jobs of a sweep have fewer overrides than its command.
        OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True, replace=True)
        job()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
