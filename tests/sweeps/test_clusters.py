"""Sweeps on clusters: what SLURM and Ray are asked, and what a job that starts again finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import Smoke
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.showtell_clusters import RayLauncher, SlurmLauncher, run_command
from showtell.errors import UserError
from showtell.runs import LAST_CHECKPOINT, find_run

SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
LAUNCHERS = Path(__file__).parents[2] / "conf" / "hydra" / "launcher"
CONTEXT: Any = SimpleNamespace()


def options(launcher: str) -> dict[str, Any]:
    """What the YAML of a launcher gives its constructor."""
    content = yaml.safe_load((LAUNCHERS / f"{launcher}.yaml").read_text())
    return {key: value for key, value in content.items() if key != "_target_"}


def set_up(launcher: Launcher, folder: Path) -> DictConfig:
    """The configuration of a sweep in ``folder``, as the launcher leaves it."""
    sources = [
        {"provider": "main", "path": "conf"},
        {"provider": "command-line", "path": "mine"},
    ]
    hydra = {
        "sweep": {"dir": str(folder)},
        "overrides": {"hydra": ["hydra.mode=MULTIRUN"]},
        "runtime": {"config_sources": sources},
    }
    config = OmegaConf.create({"hydra": hydra})
    launcher.setup(hydra_context=CONTEXT, task_function=print, config=config)
    return config


@pytest.mark.parametrize(
    ("launcher", "module", "extra"),
    [(SlurmLauncher, SUBMITIT, "slurm"), (RayLauncher, "ray", "ray")],
)
def test_what_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    launcher: type[Launcher],
    module: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'showtell\[{extra}\]'$"):
        set_up(launcher(**options(extra)), tmp_path)


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What submitit's launcher is given, and what it returns or raises."""
    seen = SimpleNamespace(options={}, overrides=[], returns=None)

    class Recorder:
        def __init__(self, **options: Any) -> None:
            seen.options = options

        def setup(self, *, config: Any, **_: Any) -> None:
            seen.overrides = list(config.hydra.overrides.hydra)

        def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[Any]:
            if seen.returns is None:
                raise RuntimeError("job 3\nlost")
            return seen.returns  # type: ignore[no-any-return]

    module = ModuleType(SUBMITIT)
    module.SlurmLauncher = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, SUBMITIT, module)
    return seen


def test_every_job_is_told_the_folder_of_the_sweep(
    submitit: SimpleNamespace, tmp_path: Path
) -> None:
    launcher = SlurmLauncher(**options("slurm"))
    set_up(launcher, tmp_path / "a 'b'")
    folder = f"{tmp_path}/a \\'b\\'"
    assert submitit.overrides == ["hydra.mode=MULTIRUN", f"hydra.sweep.dir='{folder}'"]
    assert submitit.options["max_num_timeout"] == 20
    with pytest.raises(UserError, match=r"below .*submitit, and the same .* \(job 3 lost\)"):
        launcher.launch([["seed=1"]], 0)


def test_failed_jobs_are_told_with_their_causes(
    submitit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, failed = (JobReturn(status=s) for s in (JobStatus.COMPLETED, JobStatus.FAILED))
    failed.return_value = UserError("the loss is nan")
    submitit.returns = [failed, done]
    launcher = SlurmLauncher(**options("slurm"))
    set_up(launcher, tmp_path)
    first, second = launcher.launch([["seed=1", "optim.lr=9"], ["seed=2"]], 0)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "FAILED    seed=1 optim.lr=9: the loss is nan",
        "1 of 2 jobs finished",
    ]
    assert second.return_value is None
    with pytest.raises(UserError, match=r"^1 of 2 jobs failed; the same command runs those again$"):
        _ = first.return_value


class InPlaceOfRay(ModuleType):
    """Runs tasks at once and in this process; one of them loses its machine."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.address: str | None = None
        self.needs: dict[str, Any] = {}
        self.commands: list[Sequence[str]] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, *, address: str, **_: Any) -> None:
        if address == "auto":
            raise ConnectionError("no cluster\nruns")
        self.address = address

    def remote(self, **needs: Any) -> Any:
        self.needs = needs

        def start(command: Sequence[str], *_: Any) -> int:
            self.commands.append(command)
            return len(self.commands)

        return lambda _: SimpleNamespace(remote=start)

    def get(self, task: int) -> str | None:
        if task == 2:
            raise self.exceptions.RayError("a machine\nwas lost")
        return None


def test_a_job_is_a_task_of_ray(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = InPlaceOfRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2"])
    launcher = RayLauncher(**{**options("ray"), "gpus": 0.5})
    set_up(launcher, tmp_path)
    first, second = launcher.launch([["seed=1"], ["seed=2"]], 0)
    assert ray.address == "local"
    assert ray.needs == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 3}
    assert ray.commands[1] == [
        *(sys.executable, str(Path("train.py").resolve()), "--multirun", "--config-dir=mine"),
        *("hydra/launcher=basic", "hydra/sweeper=basic", f"hydra.sweep.dir='{tmp_path}'"),
        "seed=2",
    ]
    assert "FAILED    seed=2: a machine was lost\n" in capsys.readouterr().out
    assert (first.status, second.status) == (JobStatus.COMPLETED, JobStatus.FAILED)
    launcher = RayLauncher(**{**options("ray"), "address": "auto"})
    set_up(launcher, tmp_path)
    with pytest.raises(UserError, match=r"^hydra.launcher.address=auto: no cluster runs$"):
        launcher.launch([["seed=1"]], 0)


def test_a_task_tells_why_its_program_failed(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    program = [sys.executable, "-c", "import os, sys; print(os.getcwd()); sys.exit('error: no')"]
    assert run_command(program, log, tmp_path) == f"no ({log})"
    assert log.read_text() == f"{tmp_path}\nerror: no\n"
    assert run_command([sys.executable, "-c", ""], log, tmp_path) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_ray_on_this_machine_runs_a_sweep(smoke: Smoke, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs showtell[ray]")
    words = ["-m", "hydra/launcher=ray", *smoke.overrides, f"output.root={tmp_path}"]
    words += ["optim.lr=1e-3,1e30", "optim.gradient_clip=null", "seed=1,2"]
    command = [sys.executable, str(LAUNCHERS.parents[2] / "train.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout.count("FAILED") == 2
    assert "2 of 4 jobs finished" in ended.stdout
    assert ended.stderr.splitlines()[-1].startswith("error: 2 of 4 jobs failed")
    records = [json.loads(file.read_text()) for file in tmp_path.glob("*/*/run.json")]
    assert sorted(r["status"] for r in records) == ["failed"] * 2 + ["finished"] * 2


def make_run(folder: Path, config: dict[str, Any], status: str, *, saved: bool) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"format": 1, "status": status}))
    if saved:
        (folder / LAST_CHECKPOINT).touch()
    return folder


@pytest.mark.parametrize(
    ("status", "saved", "is_found"),
    [
        ("finished", True, True),
        ("interrupted", True, True),
        ("running", True, True),
        ("running", False, False),
        ("failed", True, False),
    ],
)
def test_a_job_that_starts_again_finds_its_run(
    tmp_path: Path, status: str, saved: bool, is_found: bool
) -> None:
    config = {"seed": 1, "output": {"folder": None}}
    make_run(tmp_path / "other", {**config, "seed": 2}, status, saved=saved)
    (tmp_path / "begun").mkdir()
    own = make_run(tmp_path / "own", config, status, saved=saved)
    assert find_run(tmp_path, config) == (own if is_found else None)
    assert find_run(tmp_path / "none", config) is None
    later = {**config, "views": "original"}  # of a version that has the option
    assert find_run(tmp_path, later) == (own if is_found else None)
