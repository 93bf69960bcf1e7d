"""Hyperparameter search with Optuna; the only module that uses it.

A search is a *study*: a journal file to which processes on any number of machines append. There is
one job per trial. A job asks the study for values when it starts, so that the sampler has seen all
trials that ended before, and reports a score after every epoch, so that the trial can be pruned. No
coordinating process is needed.
"""

from __future__ import annotations

import random
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from showtell.errors import UserError

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.journal"
Value = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Dimension:
    """The values of one option: one of ``choices``, or a number from ``low`` to ``high`` inclusive.

    Attributes:
        choices: if not empty, the other attributes are ignored.
        low: if ``low``, ``high`` and ``step`` are integers, so are the values.
        high: at least ``low``.
        step: distance of neighbours; None for any float, or for every integer.
        log: whether to sample on a logarithmic scale, as for a learning rate.
    """

    choices: Sequence[Value] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The equivalent Optuna distribution.

        Raises:
            ValueError: the attributes allow no value.
        """
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(list(self.choices))
        ends = (self.low, self.high, 1 if self.step is None else self.step)
        if all(isinstance(end, int) for end in ends):
            low, high, step = map(int, ends)
            return IntDistribution(low, high, log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True, slots=True)
class StudySettings:
    """The settings of a study.

    Attributes:
        space: option -> its values.
        score: the name of the score to maximize.
        seed: seed of the sampler; a search that runs one trial at a time is reproducible.
        random_trials: number of trials with random values before the sampler models the scores.
        unpruned_trials: number of trials that must have ended before any is pruned.
        unpruned_epochs: number of epochs before a trial can be pruned.
    """

    space: Mapping[str, Dimension]
    score: str
    seed: int
    random_trials: int
    unpruned_trials: int
    unpruned_epochs: int


class Trial:
    """One trial of a study, as used by the job that trains it.

    Attributes:
        values: option -> the value to try.
    """

    def __init__(self, study: optuna.Study, trial: optuna.Trial) -> None:
        self.values: dict[str, Value] = trial.params
        self._study = study
        self._trial = trial

    def report(self, epoch: int, score: float) -> bool:
        """Report the score of an epoch, counted from 0; return whether to prune the trial.

        An epoch already reported, by a process that was killed since, is not reported again.
        """
        if epoch not in self._study.trials[self._trial.number].intermediate_values:
            self._trial.report(score, epoch)
        return bool(self._trial.should_prune())  # a NumPy bool could not be saved

    def finish(self, *, pruned: bool) -> None:
        """Close the trial as pruned, or with the best of its scores, or as failed without any."""
        from optuna.trial import TrialState

        scores = self._study.trials[self._trial.number].intermediate_values.values()
        if pruned:
            self._study.tell(self._trial, state=TrialState.PRUNED)
        elif scores:
            self._study.tell(self._trial, max(scores))
        else:
            self.fail()

    def fail(self) -> None:
        """Close the trial as failed, so that the sampler ignores it, for example if it diverged."""
        from optuna.trial import TrialState

        self._study.tell(self._trial, state=TrialState.FAIL)


def as_overrides(values: Mapping[str, Value]) -> list[str]:
    """The values as Hydra overrides, ``option=value``."""
    texts = {None: "null", True: "true", False: "false"}
    return [
        f"{option}={texts[value] if value is None or isinstance(value, bool) else value}"
        for option, value in values.items()
    ]


def create_study(file: Path, settings: StudySettings) -> None:
    """Create the study in ``file``, or continue it.

    Raises:
        UserError: Optuna is not installed, the file cannot be used, or it has another search space.
    """
    from optuna.distributions import distribution_to_json

    study = _open(file, create=True)
    space = {
        option: distribution_to_json(_checked(option, each))
        for option, each in settings.space.items()
    }
    known = study.user_attrs.get("space", space)
    if known != space:
        changed = sorted(o for o in {*known, *space} if known.get(o) != space.get(o))
        raise UserError(
            f"{file} searches other values of {', '.join(changed)}: restore the search space, or "
            "begin another search with another output.root"
        )
    names = ("score", "seed", "random_trials", "unpruned_trials", "unpruned_epochs")
    for name, value in {"space": space, **{n: getattr(settings, n) for n in names}}.items():
        study.set_user_attr(name, value)


def study_and_slot(search: Mapping[str, Any], sweep: Path) -> tuple[Path, str]:
    """The study file of a run in the folder ``sweep``, and the slot (job name) of the run.

    ``search`` is that node of the configuration. The slot contains the absolute path, because
    sweeps of the same command on several machines may share a study.
    """
    slot = sweep.resolve() / f"trial {search['trial']}"
    return Path(search["study"] or sweep / STUDY_FILE), str(slot)


def start_trial(file: Path, slot: str) -> Trial:
    """The trial of the job ``slot``: the one it has, or a new one if there is none or it failed."""
    had = _trial_of(file, slot, ended=True)
    if had is not None:
        return had
    from optuna.distributions import json_to_distribution

    study = _open(file, slot=slot)
    space = study.user_attrs["space"]
    trial = study.ask({option: json_to_distribution(text) for option, text in space.items()})
    trial.set_user_attr("slot", slot)
    return Trial(study, trial)


def resume_trial(file: Path, slot: str) -> Trial | None:
    """The trial that a resumed run of the job ``slot`` continues; None if it ended or has none.

    A failed trial, for example out of memory, is replaced by a new one with its values and scores.
    """
    from optuna.trial import TrialState, create_trial

    unfinished = _trial_of(file, slot, ended=False)
    if unfinished is not None or _trial_of(file, slot, ended=True) is not None:
        return unfinished
    study = _open(file, slot=slot)
    failed = [
        found
        for found in study.get_trials(deepcopy=False, states=[TrialState.FAIL])
        if found.user_attrs.get("slot") == slot
    ]
    if not failed:
        return None
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=failed[-1].params,
            distributions=failed[-1].distributions,
            intermediate_values=failed[-1].intermediate_values,
            user_attrs={"slot": slot},
        )
    )
    return _trial_of(file, slot, ended=False)


def _trial_of(file: Path, slot: str, *, ended: bool) -> Trial | None:
    """The running trial of a job, or with ``ended`` also a completed or pruned one, or None."""
    import optuna
    from optuna.trial import TrialState

    study = _open(file, slot=slot)
    well = [TrialState.COMPLETE, TrialState.PRUNED] if ended else []
    for found in study.get_trials(deepcopy=False, states=[TrialState.RUNNING, *well]):
        if found.user_attrs.get("slot") == slot:
            return Trial(study, optuna.Trial(study, found._trial_id))
    return None


def summary(file: Path, command: Sequence[str]) -> list[str]:
    """The result of a search as lines of text: trial counts, the best trial, its command.

    ``command`` are the overrides that all trials share.
    """
    from optuna.trial import TrialState

    study = _open(file)
    # The last trial of each job: a job that failed and was retried has several.
    last = {t.user_attrs.get("slot", t.number): t.state for t in study.get_trials(deepcopy=False)}
    counts = Counter(last.values())
    lines = [
        f"search: {counts[TrialState.COMPLETE]} trials trained to the end, "
        f"{counts[TrialState.PRUNED]} stopped early, {counts[TrialState.RUNNING]} not ended, "
        f"{counts[TrialState.FAIL]} failed",
    ]
    if counts[TrialState.COMPLETE] == 0:
        return lines
    best = study.best_trial
    best_slot = "/".join(Path(best.user_attrs["slot"]).parts[-2:])
    words = [*command, *as_overrides(best.params)]
    return [
        *lines,
        f"best: {study.user_attrs['score']} {best.value:.4f} in {best_slot}",
        f"  {shlex.join(['python', 'train.py', *words])}",
    ]


def _checked(option: str, dimension: Dimension) -> optuna.distributions.BaseDistribution:
    try:
        return dimension.distribution()
    except ValueError as error:
        raise UserError(f"{option}: {error}; see docs/search.md for how to write values") from error


def _open(file: Path, *, create: bool = False, slot: str = "") -> optuna.Study:
    """Open the study in ``file``; its sampler's seed depends on ``slot``."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'showtell[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not create and not file.is_file():
        raise UserError(f"{file} is missing: a trial belongs to a search, started by sweep=optuna")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        study = optuna.create_study(
            storage=storage, study_name="showtell", direction="maximize", load_if_exists=True
        )
    except OSError as error:
        raise UserError(
            f"{file} cannot be used ({error.strerror}): make room or give write permission there"
        ) from error
    settings = study.user_attrs
    if "seed" in settings:
        # A seed of its own for each trial, whatever folder the search is in.
        known = len(study.get_trials(deepcopy=False))
        seed = random.Random(f"{settings['seed']} {Path(slot).name} {known}").getrandbits(32)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=settings["random_trials"], seed=seed
        )
        study.pruner = optuna.pruners.MedianPruner(
            n_startup_trials=settings["unpruned_trials"],
            n_warmup_steps=settings["unpruned_epochs"],
        )
    return study
