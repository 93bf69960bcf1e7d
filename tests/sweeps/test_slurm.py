"""A sweep on SLURM: submitit's scripts and jobs for real, SLURM itself a stub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_stub
from conftest import Smoke

from showtell.runs import LAST_CHECKPOINT

PROGRAM = Path(__file__).parents[2] / "train.py"
LONGEST_WAIT_SECONDS = 600


@pytest.fixture
def state(tmp_path: Path) -> Path:
    slurm_stub.install(tmp_path / "bin")
    (tmp_path / "slurm").mkdir()
    return tmp_path / "slurm"


def preempt(state: Path, task: str, sweep_root: Path) -> None:
    """As SLURM does, once the task has saved a state: SIGTERM, and the signal of the script."""
    until = time.monotonic() + LONGEST_WAIT_SECONDS
    while not any(sweep_root.glob(f"*/*/{LAST_CHECKPOINT}")):
        assert time.monotonic() < until
        time.sleep(0.02)
    pid = int((state / f"{task}.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGUSR2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_job_goes_on_and_all_finish(smoke: Smoke, tmp_path: Path, state: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs showtell[slurm]")
    root = tmp_path / "sweeps"
    words = ["-m", "hydra/launcher=slurm", *smoke.overrides, f"output.root={root}", "seed=1,2"]
    words += ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=480"]
    words += ["trainer.max_epochs=10"]
    environment = {**os.environ, "SLURM_STUB": str(state)}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sweep:
        preempt(state, "4711_0", root)
        said = sweep.communicate(timeout=LONGEST_WAIT_SECONDS)[0]
    assert sweep.returncode == 0, said
    assert "2 of 2 jobs finished" in said

    check_script((state / "script.sh").read_text())
    (folder,) = root.iterdir()
    runs = sorted(file.parent for file in folder.glob("*/run.json"))
    assert len(runs) == 2
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    assert [record["status"] for record in records] == ["finished"] * 2
    log = "".join(file.read_text() for file in folder.glob(".submitit/*/4711_0_0_log.*"))
    assert "this job is preempted" in log
    assert "Requeued job 4711_0" in log
    assert "interrupted; go on with" in log
    check_compared(runs)


def check_script(script: str) -> None:
    """What SLURM is told of each job."""
    lines = script.splitlines()
    for line in (
        *("array=0-1%2", "partition=gpu", "time=480", "nodes=1", "ntasks-per-node=1"),
        *("gpus-per-node=1", "cpus-per-task=4", "mem=16GB", "job-name=showtell"),
        *("signal=USR2@120", "requeue", "open-mode=append"),
    ):
        assert f"#SBATCH --{line}" in lines, script
    assert any(line.startswith("srun ") and "submitit.core._submit" in line for line in lines)


def check_compared(runs: list[Path]) -> None:
    command = [sys.executable, "-m", "showtell", "compare", str(runs[0].parent)]
    compared = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stderr
    assert "2" in compared.stdout
