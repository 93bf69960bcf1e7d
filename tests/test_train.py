"""``train.py`` as a user meets it: the last line, mistakes, sweeps, signals."""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import Smoke

from showtell.training.module import CaptioningModule

pytestmark = pytest.mark.usefixtures("without_java")
PROGRAM = Path(__file__).parents[1] / "train.py"


class Answer:
    """What the program printed, and its status; a text as status goes to the error stream."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.status = 1 if isinstance(code, str) else code
        self.out, self.err = out, err + (code if isinstance(code, str) else "")


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Answer]]:
    """Runs ``python train.py`` in this process."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            runpy.run_path(str(PROGRAM), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        return Answer(code, *capsys.readouterr())

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the program changes it; put back afterwards
    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)
    gc.enable()


def statuses(root: Path) -> list[str]:
    return [json.loads(p.read_text())["status"] for p in sorted(root.rglob("run.json"))]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["optim.lrr=1"], "optim.lrr: there is no such option; did you mean lr?"),
        (["+optim.speed=1"], "optim.speed: there is no such option; there are final_lr_fraction"),
        (["modle=lstm_glove"], "modle: there is no such option; did you mean model?"),
        (
            ["model=gru"],
            "model=gru: there is no such choice; there are attention_glove, lstm_glove",
        ),
        (["optim.lr=fast"], "optim.lr=fast: must be a number"),
        (["optim.lr"], "optim.lr: cannot be understood; write KEY=VALUE, in quotes if need be"),
        (["data.root=none"], "none is not a folder: set data.root to the folder of the data set"),
        (["resume=none"], "none is not a run folder: it has no config.yaml; give the folder"),
        (["-m", "optim.lr=fast"], "optim.lr=fast: must be a number"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(
    train: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = train(*arguments, "tracking=disabled")
    assert answer.status == 1
    assert answer.err.splitlines()[-1].startswith(f"error: {sentence}")
    assert "Traceback" not in answer.err
    if "-m" not in arguments:
        assert answer.err.count("\n") == 0
        assert list(tmp_path.iterdir()) == []


def test_only_what_a_resumed_run_may_change_is_taken(
    train: Callable[..., Answer], smoke: Smoke
) -> None:
    answer = train(f"resume={smoke.folder}", "optim.lr=1")
    assert answer.status == 1
    assert "optim.lr=1: " in answer.err
    assert "config.yaml fixes this; only trainer." in answer.err
    answer = train(f"resume={smoke.folder}")
    assert "has finished: raise trainer.max_epochs" in answer.err


def test_one_failing_job_leaves_the_others_of_a_sweep(
    train: Callable[..., Answer], smoke: Smoke, tmp_path: Path
) -> None:
    jobs = ("optim.lr=1e30,1e-3", "optim.gradient_clip=null")
    answer = train("-m", *smoke.overrides, f"output.root={tmp_path}", *jobs)
    assert answer.status == 1
    assert answer.err.count("error: The loss is") == 2  # when it happens, and at the end
    (sweep,) = tmp_path.iterdir()
    runs = [folder for folder in sweep.iterdir() if folder.is_dir()]
    assert len(runs) == 2
    assert sorted(statuses(sweep)) == ["failed", "finished"]
    assert answer.out.count("\nrun: ") == 1
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    assert {config["optim"]["lr"] for config in configs} == {1e30, 1e-3}


def test_two_sweeps_of_one_second_do_not_share_a_folder(
    train: Callable[..., Answer], tmp_path: Path
) -> None:
    for _ in range(2):
        train("-m", f"output.root={tmp_path}", "data.root=none", "seed=1")
    assert len(list(tmp_path.glob("sweep_*"))) == 2


def test_a_terminated_run_says_how_to_go_on(
    train: Callable[..., Answer], smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(module: CaptioningModule, optimizer: object) -> None:
        if module.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CaptioningModule, "on_before_zero_grad", terminate)
    folder = tmp_path / "run"
    answer = train(*smoke.overrides, f"output.folder={folder}")
    assert answer.status == 143
    assert f"interrupted; go on with: python train.py resume={folder}" in answer.err
    assert statuses(tmp_path) == ["interrupted"]


@pytest.mark.slow
def test_what_is_printed_is_calm_and_ends_with_the_run(smoke: Smoke, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(PROGRAM), *smoke.overrides, f"output.folder={folder}"]
    done = subprocess.run(
        [*command, "tracking=offline", "callbacks.progress_refresh=0"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"run: {folder}"
    assert "scenes val, 4 images, scores x 100" in done.stdout
