from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.showtell_sweeper import _check, _dimension
from showtell.config import choices_of, config_folder
from showtell.errors import UserError
from showtell.search import (
    Dimension,
    StudySettings,
    as_overrides,
    create_study,
    resume_trial,
    start_trial,
    summary,
)

optuna = pytest.importorskip("optuna")
SPACE = {
    "optim.lr": Dimension(low=1e-4, high=1e-1, log=True),
    "model.hidden_size": Dimension(choices=["128", "256"]),
}


def study_settings(**changes: Any) -> StudySettings:
    settings: dict[str, Any] = {
        **{"space": SPACE, "score": "val/CIDEr", "seed": 1},
        **{"random_trials": 3, "unpruned_trials": 2, "unpruned_epochs": 1},
    }
    return StudySettings(**{**settings, **changes})


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path / "study.journal", study_settings())
    return tmp_path / "study.journal"


def trials(file: Path) -> list[Any]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    return list(optuna.load_study(storage=storage, study_name="showtell").trials)


def run(file: Path, slot: str, scores: list[float]) -> int:
    """A training with these scores; how many epochs it was given."""
    trial = start_trial(file, slot)
    for epoch, score in enumerate(scores):
        if trial.report(epoch, score):
            trial.finish(pruned=True)
            return epoch + 1
    trial.finish(pruned=False)
    return len(scores)


def test_a_bad_trial_is_stopped_and_a_good_one_is_not(study: Path) -> None:
    for slot in ("a", "b", "c"):
        assert run(study, slot, [0.1, 0.2, 0.3, 0.4]) == 4
    assert run(study, "bad", [0.1, 0.1, 0.1, 0.1]) == 2  # the first epoch is given to all
    assert run(study, "good", [0.1, 0.3, 0.4, 0.5]) == 4
    found = {t.user_attrs["slot"]: (t.state.name, t.value) for t in trials(study)}
    assert found["bad"] == ("PRUNED", 0.1)
    assert found["good"] == ("COMPLETE", 0.5)
    assert found["a"] == ("COMPLETE", 0.4)


def test_the_score_of_a_trial_is_its_best_epoch(study: Path) -> None:
    run(study, "a", [0.1, 0.7, 0.2])
    assert trials(study)[0].value == 0.7


def test_a_killed_trial_goes_on_with_its_values(study: Path) -> None:
    before = start_trial(study, "a")
    before.report(0, 0.25)
    again = start_trial(study, "a")
    assert again.values == before.values
    again.report(0, 0.25)  # a resumed training may validate an epoch again
    again.report(1, 0.5)
    again.finish(pruned=False)
    (trial,) = trials(study)
    assert trial.intermediate_values == {0: 0.25, 1: 0.5}
    assert resume_trial(study, "a") is None
    assert start_trial(study, "b").values != before.values


def test_a_failed_trial_is_told_and_its_run_goes_on_with_its_values(study: Path) -> None:
    before = start_trial(study, "a")
    before.report(0, 0.75)
    before.fail()
    assert [trial.state.name for trial in trials(study)] == ["FAIL"]
    assert summary(study, [])[0].endswith("0 stopped early, 0 not ended, 1 failed")
    again = resume_trial(study, "a")
    assert again is not None
    assert again.values == before.values
    again.report(1, 0.5)
    again.finish(pruned=False)
    assert [(trial.state.name, trial.value) for trial in trials(study)] == [
        ("FAIL", None),
        ("COMPLETE", 0.75),
    ]
    # One job, which came to its end.
    assert summary(study, [])[0].endswith(
        "1 trials trained to the end, 0 stopped early, 0 not ended, 0 failed"
    )
    assert resume_trial(study, "a") is None
    # A job whose run came to nothing takes other values.
    failed = start_trial(study, "b")
    failed.fail()
    assert start_trial(study, "b").values != failed.values


def test_a_trial_without_a_score_has_failed(study: Path) -> None:
    start_trial(study, "a").finish(pruned=False)
    assert [trial.state.name for trial in trials(study)] == ["FAIL"]


def test_a_search_repeats_itself(tmp_path: Path) -> None:
    tried = []
    for name in ("one", "two"):
        file = tmp_path / name / "study.journal"
        create_study(file, study_settings())
        for number in range(5):
            run(file, f"trial {number}", [number / 10])
        tried.append([trial.params for trial in trials(file)])
    assert tried[0] == tried[1]
    assert len({str(params) for params in tried[0]}) == 5
    create_study(tmp_path / "other" / "study.journal", study_settings(seed=2))
    assert start_trial(tmp_path / "other" / "study.journal", "trial 0").values != tried[0][0]


def test_jobs_of_several_processes_share_a_study(study: Path) -> None:
    threads = [threading.Thread(target=run, args=(study, f"{n}", [n / 10])) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = trials(study)
    assert sorted(trial.user_attrs["slot"] for trial in found) == list("012345")
    assert {trial.state.name for trial in found} == {"COMPLETE"}


KILLED = """
import os, signal, sys
from pathlib import Path
from showtell.search import start_trial
study = Path(sys.argv[1])
for slot in "abc":
    trial = start_trial(study, slot)
    trial.report(0, 0.5)
    if slot == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    trial.finish(pruned=False)
"""


def test_sigkill_loses_no_finished_trial(study: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(study)], timeout=100)
    assert killed.returncode == -signal.SIGKILL
    assert [trial.state.name for trial in trials(study)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    values = trials(study)[2].params
    create_study(study, study_settings())  # the same command again
    trial = start_trial(study, "c")
    assert trial.values == values
    trial.finish(pruned=False)
    assert [trial.state.name for trial in trials(study)] == ["COMPLETE"] * 3
    assert len(trials(study)) == 3


def test_the_best_trial_is_told_with_its_command(study: Path) -> None:
    assert summary(study, [])[0].startswith("search: 0 trials trained to the end")
    for slot, score in (("a", 0.1), ("b", 0.6), ("c", 0.3)):
        run(study, slot, [score])
    start_trial(study, "d")
    counted, best, command = summary(study, ["model=lstm_glove", "data.root=my data"])
    assert counted == "search: 3 trials trained to the end, 0 stopped early, 1 not ended, 0 failed"
    assert best == "best: val/CIDEr 0.6000 in b"
    values = trials(study)[1].params
    assert command == (
        "  python train.py model=lstm_glove 'data.root=my data' "
        f"optim.lr={values['optim.lr']} model.hidden_size={values['model.hidden_size']}"
    )


def test_another_space_is_refused(study: Path) -> None:
    other = {**SPACE, "optim.lr": Dimension(low=1.0, high=2.0)}
    with pytest.raises(UserError, match=r"searches other values of optim.lr: restore"):
        create_study(study, study_settings(space=other))


def test_a_trial_without_a_search_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study.journal is missing: .*started by sweep=optuna"):
        start_trial(tmp_path / "study.journal", "a")


def test_values_are_written_as_hydra_reads_them() -> None:
    values = {"a": None, "b": True, "c": 3, "d": 1e-05, "e": "beam5"}
    assert as_overrides(values) == ["a=null", "b=true", "c=3", "d=1e-05", "e=beam5"]


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("interval(0.1,0.5)", Dimension(low=0.1, high=0.5)),
        ("tag(log,interval(1e-4,1e-2))", Dimension(low=1e-4, high=1e-2, log=True)),
        ("interval(1,4)", Dimension(low=1, high=4)),
        ("range(1,5)", Dimension(low=1, high=4, step=1)),
        ("range(0,10,3)", Dimension(low=0, high=9, step=3)),
        ("16,32", Dimension(choices=["16", "32"])),
        ("beam3,greedy", Dimension(choices=["beam3", "greedy"])),
    ],
)
def test_hydras_grammar_says_the_values(text: str, dimension: Dimension) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"option={text}"])
    assert _dimension(override) == dimension
    dimension.distribution()


def test_search_spaces_have_options_of_their_models() -> None:
    folder = config_folder() / "sweep" / "space"
    models = choices_of("model")
    spaces = {file.stem for file in folder.glob("*.yaml")}
    assert spaces == set(models)
    assert len(spaces) >= 5
    parser = OverridesParser.create()
    for model in sorted(spaces):
        lines = yaml.safe_load((folder / f"{model}.yaml").read_text())
        assert any(option.startswith("model.") for option in lines)
        overrides = parser.parse_overrides([f"{o}={values}" for o, values in lines.items()])
        space = {override.get_key_element(): _dimension(override) for override in overrides}
        _check([f"model={model}"], space)


def test_a_misspelt_option_is_told_before_any_trial() -> None:
    with pytest.raises(UserError, match=r"optim.lrr: there is no such option"):
        _check([], {"optim.lrr": Dimension(low=0.1, high=0.2)})
