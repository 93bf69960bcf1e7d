"""Train a captioner: ``python train.py model=lstm_glove``; ``conf/`` says what else can change."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from showtell.config import CHANGEABLE_ON_RESUME, resolve, saved_config
from showtell.errors import UserError


def run(composed: DictConfig) -> Path:
    """Train anew, or continue the run that ``resume`` names; return the run folder."""
    job = HydraConfig.get()
    composed.name = composed.name or "{model}-{data}".format(**job.runtime.choices)
    if job.mode is RunMode.MULTIRUN:
        composed.output.root = job.sweep.dir
    if composed.resume is None:
        config = resolve(composed)
        from showtell.experiment import train  # after the check: torch takes seconds to import

        return train(config)
    folder = Path(composed.resume)
    overrides = [o for o in job.overrides.task if not o.startswith("resume=")]
    config = saved_config(folder / "config.yaml", overrides, CHANGEABLE_ON_RESUME)
    from showtell.experiment import resume

    return resume(folder, config)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> None:
    """One job: prints the run folder last, or one sentence that says what to mend."""
    try:
        folder = run(composed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # the sweep goes on with its other jobs and tells at its end
        sys.exit(1)
    print(f"run: {folder}")


if __name__ == "__main__":
    main()
