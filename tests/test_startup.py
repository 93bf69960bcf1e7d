"""What answers before torch is imported, which takes seconds: help, and every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "train.py"
SLOW_TO_IMPORT = "torch lightning timm torchvision wandb transformers openvino optuna submitit ray"
# Runs several command lines, then tells what they imported.
RUN = f"""
import contextlib, runpy, sys
from showtell import cli

def train():
    runpy.run_path({str(PROGRAM)!r}, run_name="__main__")

lines = [line.split() for line in sys.argv[1:]]
for program, *words in lines:
    sys.argv = [program, *words]
    try:
        train() if program == "train.py" else cli.main(words)
        status = 0
    except SystemExit as ended:
        status = 1 if isinstance(ended.code, str) else ended.code
    print("status", status, file=sys.stderr)
print("imported", sorted(set({SLOW_TO_IMPORT!r}.split()) & set(sys.modules)), file=sys.stderr)
"""
HELP = (
    *("train.py --help", "train.py -h model=merge_glove"),
    *("showtell --help", "showtell features --help", "showtell evaluate --help"),
    *("showtell caption --help", "showtell report --help", "showtell doctor --help"),
    *("showtell compare --help",),
)
MISTAKES = (
    *("train.py optim.lrr=1", "train.py optim.lr=fast", "train.py model=gru", "train.py optim.lr"),
    *("train.py data.root=none", "train.py data=table data.file=none", "train.py resume=none"),
    *("showtell features optim.lrr=1", "showtell features data.root=none"),
    *("showtell evaluate none", "showtell doctor data.root=none", "showtell caption none"),
    *("showtell compare none", "showtell compare none --output table.txt"),
)


def run(lines: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *lines]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)


@pytest.mark.parametrize(("lines", "statuses"), [(HELP, {"0"}), (MISTAKES, {"1", "2"})])
def test_help_and_mistakes_are_answered_without_torch(
    lines: tuple[str, ...], statuses: set[str], tmp_path: Path
) -> None:
    told = run(lines, tmp_path).stderr.splitlines()
    found = [line.removeprefix("status ") for line in told if line.startswith("status ")]
    assert len(found) == len(lines)
    assert set(found) == statuses
    assert told[-1] == "imported []"
    assert list(tmp_path.iterdir()) == []


def test_help_shows_what_can_be_chosen_and_set(tmp_path: Path) -> None:
    shown = run(("train.py --help model=merge_glove optim.lr=0.25",), tmp_path).stdout
    assert "  model: " in shown
    assert "merge_glove" in shown
    assert "showtell.models.merge.MergeDecoder" in shown
    assert "  lr: 0.25\n" in shown
