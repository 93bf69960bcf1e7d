"""``train.py`` as a user meets it: the last line, mistakes, sweeps, signals."""

from __future__ import annotations

import gc
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Smoke

from showtell.runs import BEST_WEIGHTS
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
        (
            ["+optim.speed=1"],
            "optim.speed: there is no such option; there are averaging, encoder_lr",
        ),
        (["modle=lstm_glove"], "modle: there is no such option; did you mean model?"),
        (
            ["model=gru"],
            "model=gru: there is no such choice; there are adaptive_glove, attention_glove",
        ),
        (["optim.lr=fast"], "optim.lr=fast: must be a number"),
        (["optim.lr"], "optim.lr: cannot be understood; write KEY=VALUE, in quotes if need be"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0: must be at least 1"),
        (["trainer.devices=-1"], "trainer.devices=-1: must be at least 1"),
        (["data.root=none"], "none is not a folder: set data.root to the folder of the data set"),
        (["resume=none"], "none is not a run folder: it has no config.yaml; give the folder"),
        (["-m", "optim.lr=fast"], "optim.lr=fast: must be a number"),
        (
            ["-m", "trainer=ddp"],
            "trainer.devices=2: a run of a sweep on this machine has one device",
        ),
        (
            ["sweep=optuna", "trainer=ddp"],
            "trainer.devices=2, trainer.num_nodes=1: a trial of a search has one device",
        ),
        (
            ["sweep=optuna", "model=lstm_glove,merge_glove"],
            "sweep=optuna searches one model, and model=lstm_glove,merge_glove names several",
        ),
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


def test_a_run_on_a_table_looks_for_it_where_it_is_said_to_be_now(
    train: Callable[..., Answer], smoke: Smoke, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(smoke.folder, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    table = {"file": "gone.csv", "images": None, "split_seed": 0, "skip_rejected": False}
    config["data"] = {"_target_": "showtell.data.sources.table", **table}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    answer = train(f"resume={folder}", f"data.file={tmp_path}/my table.csv")
    assert answer.status == 1
    assert f"{tmp_path}/my table.csv is not a file: set data.file" in answer.err


def test_only_what_a_resumed_run_may_change_is_taken(
    train: Callable[..., Answer], smoke: Smoke
) -> None:
    answer = train(f"resume={smoke.folder}", "optim.lr=1")
    assert answer.status == 1
    assert "optim.lr=1: " in answer.err
    assert "config.yaml fixes this; only trainer." in answer.err
    answer = train(f"resume={smoke.folder}")
    assert "has finished: raise trainer.max_epochs" in answer.err


SABOTAGED = ("optim.lr=1e30,1e-3", "optim.gradient_clip=null")


def test_one_failing_job_leaves_the_others_of_a_sweep(
    train: Callable[..., Answer], smoke: Smoke, tmp_path: Path
) -> None:
    """With Hydra's own launcher, which runs them in this process."""
    words = ("-m", *smoke.overrides, f"output.root={tmp_path}", "hydra/launcher=basic")
    answer = train(*words, *SABOTAGED)
    assert answer.status == 1
    assert answer.err.count("error: The loss is") == 2  # when it happens, and at the end
    (sweep,) = tmp_path.iterdir()
    runs = [folder for folder in sweep.iterdir() if folder.is_dir()]
    assert len(runs) == 2
    assert sorted(statuses(sweep)) == ["failed", "finished"]
    assert answer.out.count("\nrun: ") == 1
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    assert {config["optim"]["lr"] for config in configs} == {1e30, 1e-3}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["output.folder=x"], "output.folder is one folder"),
        (["resume=x"], "resume is for one run"),
        (["hydra.launcher.cpu_slots=0"], "hydra.launcher.cpu_slots=0: must be a whole number"),
        (["hydra.launcher.silent_minutes=0"], "hydra.launcher.silent_minutes=0: must be a number"),
    ],
)
def test_what_a_sweep_cannot_do_is_said_before_it_starts(
    train: Callable[..., Answer], tmp_path: Path, words: list[str], sentence: str
) -> None:
    answer = train("-m", f"output.root={tmp_path}", "seed=1,2", *words)
    assert answer.status == 1
    assert answer.err.startswith(f"error: {sentence}")
    assert not list(tmp_path.rglob("*.log"))


def test_the_same_command_names_the_same_sweep(
    train: Callable[..., Answer], tmp_path: Path
) -> None:
    words = [f"output.root={tmp_path}", "seed=1,2", "optim.lr=1e-3", "data.root=none"]
    for order in (words, words[::-1]):
        train("-m", "hydra/launcher=basic", *order)
    assert len(list(tmp_path.glob("sweep_seed_*"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_of_processes_is_finished_by_the_same_command(smoke: Smoke, tmp_path: Path) -> None:
    words = [*smoke.overrides, *SABOTAGED, "seed=1,2", f"output.root={tmp_path / 'runs'}"]
    command = [sys.executable, str(PROGRAM), "-m", *words, "hydra.launcher.cpu_slots=2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def sweep(command: list[str]) -> tuple[str, list[dict[str, Any]]]:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 1
        assert done.stderr == "error: 2 of 4 jobs failed; the same command runs those again\n"
        (record,) = tmp_path.glob("runs/*/sweep.json")
        assert done.stdout.splitlines()[-1] == f"sweep: {record.parent}"
        return done.stdout, json.loads(record.read_text())["jobs"]

    out, jobs = sweep(command)
    assert [job["status"] for job in jobs] == ["failed", "failed", "finished", "finished"]
    assert all(job["cause"].startswith("The loss is ") for job in jobs[:2])
    assert out.count(": The loss is ") == 4  # when it happens, and in the summary
    _, jobs = sweep([*command[:3], *reversed(command[3:])])
    assert [job["attempts"] for job in jobs] == [2, 2, 1, 1]


def test_a_terminated_run_says_how_to_go_on(
    train: Callable[..., Answer], smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(module: CaptioningModule, optimizer: object) -> None:
        if module.global_step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(CaptioningModule, "on_before_zero_grad", terminate)
    folder = tmp_path / "run"
    answer = train(*smoke.overrides, f"output.folder={folder}")
    assert answer.status == 143
    assert f"interrupted; go on with: python train.py resume={folder}" in answer.err
    assert statuses(tmp_path) == ["interrupted"]


LONGEST_SAVE_SECONDS = 10
LONG = ("trainer.max_epochs=12", "callbacks.checkpoint_every_steps=null", "model.word_dropout=0.3")


@pytest.fixture(scope="module")
def unbroken(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody ended."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    command = [sys.executable, str(PROGRAM), *smoke.overrides, *LONG, f"output.folder={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("epoch", [1, 6])
def test_a_real_run_asked_to_end_saves_in_time_and_goes_on_exactly(
    smoke: Smoke, unbroken: Path, tmp_path: Path, number: signal.Signals, epoch: int
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(PROGRAM), *smoke.overrides, *LONG, f"output.folder={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        curves = folder / "metrics.csv"
        while not curves.exists() or f"\n{epoch}," not in curves.read_text():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        asked_at = time.monotonic()
        _, said = process.communicate()
        seconds = time.monotonic() - asked_at
    print(f"{number.name}: ended after {seconds:.1f} s")
    assert seconds < LONGEST_SAVE_SECONDS
    assert process.returncode == 128 + number
    assert f"go on with: python train.py resume={folder}" in said.decode()
    assert statuses(tmp_path) == ["interrupted"]
    assert curves.read_bytes() != (unbroken / "metrics.csv").read_bytes()
    resumed = [sys.executable, str(PROGRAM), f"resume={folder}"]
    subprocess.run(resumed, check=True, capture_output=True)
    for name in ("metrics.csv", BEST_WEIGHTS, "captions-val.json", "scores-val.json"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name


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
