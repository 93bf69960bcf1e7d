"""The dashboard as code, and the W&B sweep file, both without W&B's server."""

from __future__ import annotations

import json
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Smoke
from wandb_reading import Recorded

from showtell.config import compose

# wandb-workspaces uses old names of Pydantic.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Name of a section -> its panels, as they would be sent."""
    file = tmp_path_factory.mktemp("dashboard") / "dashboard.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dashboard.py", "--output", str(file)])
        runpy.run_path(str(ROOT / "scripts" / "dashboard.py"), run_name="__main__")
    content = json.loads(file.read_text())
    listed = content["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in listed}


def test_curves_have_their_axes(sections: dict[str, list[dict[str, Any]]]) -> None:
    axes = {p["config"]["metrics"][0]: p["config"]["xAxis"] for p in sections["Curves"]}
    assert axes["val/CIDEr"] == axes["val/BLEU-4"] == axes["train/loss"] == "epoch"
    assert axes["train/step_loss"] == "step"


def test_scores_are_compared_by_configuration(sections: dict[str, list[dict[str, Any]]]) -> None:
    bars = sections["Scores by configuration"]
    assert [bar["config"]["metrics"] for bar in bars][:2] == [["best/CIDEr"], ["best/BLEU-4"]]
    assert {bar["config"]["groupBy"] for bar in bars} == {"name.value"}


def test_a_sweep_is_explained(sections: dict[str, list[dict[str, Any]]]) -> None:
    parallel, importance = sections["Sweep"]
    accessors = [column["accessor"] for column in parallel["config"]["columns"]]
    assert accessors[-1] == "summary:best/CIDEr"
    assert "config:optim.value.lr" in accessors
    config = compose([])
    for accessor in accessors[:-1]:
        group, _, option = accessor.removeprefix("config:").split(".")
        assert option in config[group]
    assert importance["config"]["targetKey"] == "best/CIDEr"


def test_captions_and_machine_are_there(sections: dict[str, list[dict[str, Any]]]) -> None:
    assert [panel["viewType"] for panel in sections["Captions"]] == ["Weave", "Weave"]
    assert "best/captions" in json.dumps(sections["Captions"][1])
    metrics = [panel["config"]["metrics"][0] for panel in sections["Machine"]]
    assert "system/cpu" in metrics


def agent_command(file: Path) -> list[str]:
    """What W&B's agent would run with the first or lowest value of every parameter."""
    sweep = yaml.safe_load(file.read_text())
    values = {
        name: spec["value"] if "value" in spec else spec.get("values", [spec.get("min")])[0]
        for name, spec in sweep["parameters"].items()
    }
    words: list[str] = []
    for part in sweep["command"]:
        match part:
            case "${env}":
                words.append("/usr/bin/env")
            case "${program}":
                words.append(sweep["program"])
            case "${args_no_hyphens}":
                words += [f"{name}={value}" for name, value in values.items()]
            case _:
                words.append(part)
    return words


def test_wandb_sweeps_call_the_program_with_valid_overrides() -> None:
    files = sorted((ROOT / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        words = agent_command(file)
        assert words[:3] == ["/usr/bin/env", "python", "train.py"]
        config = compose(words[3:])
        assert config["model"]["_target_"].startswith("showtell.models.")
        metric = yaml.safe_load(file.read_text())["metric"]
        assert metric == {"name": "val/CIDEr", "goal": "maximize"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_wandbs_agent_starts_is_a_run_of_its_sweep(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent itself starts it; only what its server would say is made up."""
    from wandb.wandb_agent import Agent

    (file,) = (ROOT / "sweeps").glob("*.yaml")
    sweep = yaml.safe_load(file.read_text())
    overrides = [*agent_command(file)[3:], *smoke.overrides, "tracking=offline"]
    values = dict(word.split("=", 1) for word in [*overrides, f"output.root={tmp_path / 'runs'}"])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, "")
    agent = Agent(api=None, queue=None, sweep_id="sweep1")
    agent._sweep_command = sweep["command"]
    args = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "run1", "program": sweep["program"], "args": args})
    assert agent._run_processes["run1"].wait() == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    recorded = Recorded(run)
    assert (recorded.run.run_id, recorded.run.sweep_id) == ("run1", "sweep1")
    assert recorded.config["optim"]["lr"] == sweep["parameters"]["optim.lr"]["min"]
    assert [epoch for epoch, _ in recorded.curve("val/CIDEr")]
