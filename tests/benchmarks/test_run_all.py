"""Every benchmark runs, at tiny sizes; what it measures then means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from page import ORDER

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_benchmark_has_its_place_on_the_page() -> None:
    texts = {file.stem: file.read_text("utf-8") for file in BENCHMARKS.glob("*.py")}
    assert len(texts) >= 9
    found = {name for name, text in texts.items() if " = parser(__doc__)" in text}
    assert len(found) >= 4
    assert found <= {*ORDER, "gpu"}  # the last needs a GPU and real data, and is run by hand


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ORDER)
def test_a_quick_look(name: str, tmp_path: Path) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent, capture_output=True)
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["name"] == name
    assert report["timings"]
    assert report["figures"]


NVIDIA_SMI = """#!/bin/sh
while sleep 0.05; do echo 40; echo 60; done
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_way_to_the_best_captions_is_timed_and_the_gpu_asked(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    words = ["experiment=smoke", f"data.root={tmp_path}", "callbacks.patience=null"]
    command = [sys.executable, "benchmarks/gpu.py", *words, "--quick", "--output", str(tmp_path)]
    places = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent, capture_output=True, env=places)
    report = json.loads((tmp_path / "gpu.json").read_text())
    features, best, busy = (figure["value"] for figure in report["figures"])
    (facts,) = report["facts"]["turns"]
    assert features > 0
    assert 0 < best < facts["seconds of train.py"]
    assert busy == pytest.approx(0.5, abs=0.1)
