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
from showtell.search import as_overrides, start_trial, study_and_slot

ADDED = "++"  # before an override whose key the configuration need not have


def run(composed: DictConfig) -> Path | None:
    """Train a new run, or resume the run that ``resume`` names; return the run folder.

    None if other processes train instead; their rank 0 prints the run folder.
    """
    job = HydraConfig.get()
    if composed.search.trial is not None:
        folder = composed.output.folder
        sweep = Path(job.sweep.dir) if folder is None else Path(folder).parent
        values = start_trial(*study_and_slot(composed.search, sweep)).values
        composed = compose_unchecked([*job.overrides.task, *as_overrides(values)])
    choices = job.runtime.choices
    composed.name = composed.name or "-".join(choices.get(g, g) for g in ("model", "data"))
    if job.mode is RunMode.MULTIRUN:
        if composed.output.folder is not None:
            raise UserError("output.folder is one folder: a sweep (-m) makes one for each run")
        composed.output.root = job.sweep.dir
        composed.tracking.group = composed.tracking.group or Path(job.sweep.dir).name
    # Mistakes in the configuration or the data set are reported before torch is imported, which
    # takes seconds.
    if composed.resume is None:
        config = resolve(composed)
        if job.mode is RunMode.MULTIRUN:
            from showtell.runs import find_run

            begun = find_run(Path(job.sweep.dir), config)
            if begun is not None:  # the job was requeued, or the sweep's command repeated
                return go_on(begun, [])
        data = build("data", config["data"])
        if launched(config["trainer"]):
            return None
        from showtell.experiment import train

        gc.enable()
        return train(config, data)
    overrides = [o for o in job.overrides.task if not o.startswith("resume=")]
    return go_on(Path(composed.resume), [o.removeprefix(ADDED) for o in overrides])


def go_on(folder: Path, overrides: Sequence[str]) -> Path | None:
    """Resume the run in ``folder``; in a sweep, a finished run is left as it is."""
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
    """Train in other processes, one per device, if that is needed; whether it was done."""
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
    """Run one training, possibly a job of a sweep; print the run folder last."""
    try:
        folder = run(composed)
    except UserError as error:
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            sys.exit(f"error: {error}")
        # Printed at once: Hydra raises it only at the end, after the sweep's other jobs.
        print(f"error: {error}", file=sys.stderr)
        raise
    if folder is not None:
        print(f"run: {folder}")


def main() -> None:
    """Run the command line; a mistake that the user can fix is one sentence and status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing pages
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as Ctrl-C: run every `finally`
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # Until the training begins, Hydra, the captions and PyTorch make a million small objects and no
    # garbage: collecting takes a sixth of the startup time.
    gc.disable()
    atexit.register(gc.freeze)  # saves a second at exit, where nothing needs to be collected
    words = sys.argv[1:]
    if any(word.startswith("resume=") for word in words):
        # Where the data are now: options of the run's data set, which need not be the default one.
        sys.argv[1:] = [f"{ADDED}{word}" if word.startswith("data.") else word for word in words]
    try:
        if {"-h", "--help"} & set(words):
            # Hydra's own help takes twice the time, mostly to list Hydra's own options.
            try:
                print(overview([word for word in words if not word.startswith("-")]), flush=True)
            except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        # Cached, because the jobs of a sweep have fewer overrides than its command, and must get
        # the same name.
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
