"""Sweeps on clusters: the launchers of others, and what a job that is queued again finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from hydra_plugins.showtell_clusters import ClusterLauncher, RayLauncher, SlurmLauncher
from showtell.errors import UserError
from showtell.runs import LAST_CHECKPOINT, find_run

LAUNCHERS = Path(__file__).parents[2] / "conf" / "hydra" / "launcher"


@pytest.mark.parametrize("launcher", [SlurmLauncher, RayLauncher])
def test_what_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, launcher: type[ClusterLauncher]
) -> None:
    monkeypatch.setitem(sys.modules, launcher.module, None)
    with pytest.raises(UserError, match=rf"pip install 'showtell\[{launcher.extra}\]'$"):
        launcher()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a launcher in place of submitit's is given."""
    given: dict[str, Any] = {}

    class Recorder:
        def __init__(self, **options: Any) -> None:
            given["options"] = options

        def setup(self, *, config: Any, **_: Any) -> None:
            given["overrides"] = list(config.hydra.overrides.hydra)

        def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[Any]:
            raise RuntimeError("job 3\nfailed")

    module = ModuleType(SlurmLauncher.module)
    module.SlurmLauncher = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, SlurmLauncher.module, module)
    return given


def test_every_job_is_told_the_folder_of_the_sweep(
    recorded: dict[str, Any], tmp_path: Path
) -> None:
    options = yaml.safe_load((LAUNCHERS / "slurm.yaml").read_text())
    launcher = SlurmLauncher(**{k: v for k, v in options.items() if k != "_target_"})
    hydra = {"sweep": {"dir": str(tmp_path)}, "overrides": {"hydra": ["hydra.mode=MULTIRUN"]}}
    context: Any = SimpleNamespace()
    launcher.setup(
        hydra_context=context, task_function=print, config=OmegaConf.create({"hydra": hydra})
    )
    assert recorded["overrides"] == ["hydra.mode=MULTIRUN", f"hydra.sweep.dir='{tmp_path}'"]
    assert recorded["options"]["max_num_timeout"] == 20
    with pytest.raises(UserError, match=rf"below {tmp_path}, and the same .* \(job 3 failed\)"):
        launcher.launch([["seed=1"]], 0)


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
