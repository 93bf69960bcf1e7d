"""Train a captioner: ``python train.py model=lstm_glove``; ``conf/`` says what else can change."""

import gc
import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from showtell.config import CHANGEABLE_ON_RESUME, build, explain, overview, resolve, saved_config
from showtell.errors import UserError


def run(composed: DictConfig) -> Path:
    """Train anew, or continue the run that ``resume`` names; return the run folder."""
    job = HydraConfig.get()
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
        data = build("data", config["data"])
        from showtell.experiment import train

        gc.enable()
        return train(config, data)
    folder = Path(composed.resume)
    overrides = [o for o in job.overrides.task if not o.startswith("resume=")]
    config = saved_config(folder / "config.yaml", overrides, CHANGEABLE_ON_RESUME)
    data = build("data", config["data"])
    from showtell.experiment import resume

    gc.enable()
    return resume(folder, config, data)


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
    print(f"run: {folder}")


def main() -> None:
    """Run the command line; what the user can mend is one sentence and status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing its own pages
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: through every `finally`
    # Hydra, the captions and PyTorch make a million small objects and no rubbish until the training
    # begins: looking for it takes a sixth of the start.
    gc.disable()
    words = sys.argv[1:]
    try:
        if {"-h", "--help"} & set(words):
            # Hydra's own page takes it twice the time, most of it to list the parts of Hydra.
            print(overview([word for word in words if not word.startswith("-")]))
            return
        job()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
