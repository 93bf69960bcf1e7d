"""Hydra sweeper for a hyperparameter search, ``sweep=optuna``; see ``showtell.search``.

Hydra imports every file of this package at each start, so nothing heavy may be imported at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from showtell.config import compose, config_folder, quoted
from showtell.errors import UserError
from showtell.search import (
    STUDY_FILE,
    Dimension,
    StudySettings,
    as_overrides,
    create_study,
    summary,
)


class OptunaSweeper(Sweeper):
    """Hands all trials of a search to the configured launcher at once.

    ``conf/hydra/sweeper/optuna.yaml`` explains the arguments. Unlike Hydra's own plugin for Optuna
    it assigns no values: every trial asks the study for its own when it starts. That keeps all
    slots of a launcher busy, works even if this process ends, and allows pruning.
    """

    def __init__(
        self,
        *,
        trials: int,
        seed: int,
        random_trials: int,
        unpruned_trials: int,
        unpruned_epochs: int,
        space: str,
    ) -> None:
        super().__init__()
        self._settings = {
            "seed": seed,
            "random_trials": random_trials,
            "unpruned_trials": unpruned_trials,
            "unpruned_epochs": unpruned_epochs,
        }
        self._trials = trials
        self._space = space

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check the options, and set up the configured launcher.

        Raises:
            UserError: an option has an invalid value; raised here because Hydra wraps errors of the
                constructor.
        """
        for name, value in {"trials": self._trials, **self._settings}.items():
            least = 1 if name == "trials" else 0
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"hydra.sweeper.{name}={value}: must be a whole number, at least {least}"
                )
        self._folder = Path(config.hydra.sweep.dir)
        self._config = config.copy()
        # A job has another sweeper, which lacks our options, and other overrides, after which it
        # would name the sweep's folder.
        self._config.hydra.sweep.dir = str(self._folder)
        overrides = self._config.hydra.overrides
        self._names_space = any(e.startswith("hydra.sweeper.space=") for e in overrides.hydra)
        own = ("hydra.sweeper.", "hydra.sweep.dir=")
        overrides.hydra = [each for each in overrides.hydra if not each.startswith(own)]
        overrides.hydra.append(f"hydra.sweep.dir={quoted(str(self._folder))}")
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=self._config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials and print the best.

        Raises:
            UserError: the search space has a mistake (raised before anything starts), or a trial
                failed.
        """
        fixed, space = self._split(arguments)
        if "model" in space and not self._names_space:
            models = ",".join(map(str, space["model"].choices))
            raise UserError(
                f"sweep=optuna searches one model, and model={models} names several, each with "
                "options of its own: start a search for each, or name a file of conf/sweep/space/ "
                "that suits all with hydra.sweeper.space=FILE"
            )
        file = Path(self._config.search.study or self._folder / STUDY_FILE)
        score = self._config.callbacks.monitor
        _check(fixed, space)
        create_study(file, StudySettings(space, score, **self._settings))
        jobs = [[*fixed, f"search.trial={number}"] for number in range(self._trials)]
        try:
            returns = self._launcher.launch(jobs, initial_job_idx=0)
        finally:
            print(*summary(file, [word for word in fixed if _is_of_run(word)]), sep="\n")
        for each in returns:
            _ = each.return_value  # raises what made the trial fail
        return returns

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Dimension]]:
        """The overrides that all trials share, and the options that are searched.

        The command line wins over the file of the search space.
        """
        configured = [f"{option}={values}" for option, values in self._read_space().items()]
        fixed: dict[str, str] = {}
        space: dict[str, Dimension] = {}
        for override in OverridesParser.create().parse_overrides([*configured, *arguments]):
            option = override.get_key_element()
            fixed.pop(option, None)
            space.pop(option, None)
            if option == "sweep":  # it would begin another search
                continue
            if override.is_sweep_override():
                space[option] = _dimension(override)
            else:
                fixed[option] = str(override.input_line)
        if not space:
            raise UserError(
                f"sweep=optuna: there is nothing to search; write conf/sweep/space/{self._space}"
                ".yaml, or give an option values such as 'optim.lr=tag(log,interval(1e-4,1e-2))'"
            )
        return list(fixed.values()), space

    def _read_space(self) -> Mapping[str, Any]:
        """Option -> its values in Hydra's grammar; empty if the space has no file."""
        file = config_folder() / "sweep" / "space" / f"{self._space}.yaml"
        if not file.is_file():
            return {}
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError(f"{file} is no search space; write a line such as optim.lr: 1e-3,2e-3")
        return content


def _dimension(override: Override) -> Dimension:
    """The values of an option, from an override in Hydra's grammar."""
    match override.value():
        case IntervalSweep(start=low, end=high, tags=tags) if low is not None and high is not None:
            return Dimension(low=low, high=high, log="log" in tags)
        case RangeSweep(step=step):
            values = [float(text) for text in override.sweep_string_iterator()]
            numbers = [int(v) if v.is_integer() else v for v in values]
            return Dimension(low=numbers[0], high=numbers[-1], step=step)
        case ChoiceSweep():
            return Dimension(choices=list(override.sweep_string_iterator()))
    raise UserError(
        f"{override.input_line}: a search takes interval(LOW,HIGH), tag(log,interval(LOW,HIGH)), "
        "range(LOW,HIGH,STEP) or A,B,C"
    )


def _check(fixed: Sequence[str], space: Mapping[str, Dimension]) -> None:
    """Raise UserError for a misspelt option, an invalid value, or trials of several processes."""
    for end in ("low", "high"):
        values = {
            option: d.choices[0 if end == "low" else -1] if d.choices else getattr(d, end)
            for option, d in space.items()
        }
        trainer = compose([*fixed, *as_overrides(values)])["trainer"]
        if trainer["devices"] * trainer["num_nodes"] > 1:  # each process would ask for values
            raise UserError(
                f"trainer.devices={trainer['devices']}, trainer.num_nodes={trainer['num_nodes']}: "
                "a trial of a search has one device; the search fills the others with its other "
                "trials"
            )


def _is_of_run(override: str) -> bool:
    """Whether an override affects the training, not where a search keeps its files."""
    return not override.startswith(("output.", "search.", "hydra."))
