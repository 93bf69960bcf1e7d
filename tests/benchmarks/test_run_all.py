"""Every benchmark runs, at tiny sizes; what it measures then means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu
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
    if name == "decoding":
        pytest.importorskip("transformers", reason="install showtell[bench]")
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent, capture_output=True)
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["name"] == name
    assert report["timings"]
    assert report["figures"]


# Once, or again and again; busy while the file $BUSY is there, and half of the time without one.
NVIDIA_SMI = """#!/bin/sh
case "$*" in *--loop-ms=*) ;; *) echo 0; exit;; esac
while sleep 0.05; do
  if [ -z "$BUSY" ]; then echo 40; echo 60; elif [ -e "$BUSY" ]; then echo 100; else echo 0; fi
done
"""


def install(folder: Path) -> str:
    """A PATH with a stub of nvidia-smi, in ``folder``."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_a_gpu_counts_from_the_first_row_of_the_curves_to_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = tmp_path / "metrics.csv"
    monkeypatch.setenv("PATH", install(tmp_path / "bin"))
    monkeypatch.setenv("BUSY", str(curves))
    gpu.ask_once()
    with gpu.busy_shares(curves) as shares:
        time.sleep(0.5)
        assert shares == []
        curves.touch()
        while len(shares) < 25:
            time.sleep(0.01)
    # A line may be written before the file and read after it: some, where the reader was slow.
    assert [share for _, share in shares[5:]] == [1.0] * (len(shares) - 5)
    assert gpu.until([(1.0, 0.2), (2.0, 0.4), (3.0, 1.0)], 2.0) == [0.2, 0.4]


def test_without_a_gpu_it_ends_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="needs one of NVIDIA's GPUs"):
        gpu.ask_once()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_way_to_the_best_captions_is_timed_and_the_gpu_asked(tmp_path: Path) -> None:
    path = install(tmp_path / "bin")
    words = ["experiment=smoke", f"data.root={tmp_path}", "callbacks.patience=null"]
    command = [sys.executable, "benchmarks/gpu.py", *words, "--quick", "--output", str(tmp_path)]
    environment = {**os.environ, "PATH": path}
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent, capture_output=True, env=environment)
    report = json.loads((tmp_path / "gpu.json").read_text())
    features, best, busy = (figure["value"] for figure in report["figures"])
    (facts,) = report["facts"]["turns"]
    assert features > 0
    assert 0 < best < facts["seconds of train.py"]
    assert busy == pytest.approx(0.5, abs=0.1)
