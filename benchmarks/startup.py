"""How long until the first answer: whole processes, from the shell's call to their end.

    python benchmarks/startup.py [--run RUN] [--picture FILE]

Measured are help, mistakes in the configuration, and one caption; the limit is a process that only
imports PyTorch. Without ``--run`` a small captioner of built-in scenes is trained first, with the
encoder that is installed with the project; its decoder has the configured sizes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from measure import Figure, Report, Timing, Work, parser, prepare, time_in_turns

ROOT = Path(__file__).parents[1]
TRAIN = (sys.executable, str(ROOT / "train.py"))
SHOWTELL = (sys.executable, "-m", "showtell")
ONCE = {"process": 1.0}
# What each process may take, in seconds.
TARGETS = {
    "train.py --help": 1.0,
    "showtell --help": 1.0,
    "showtell caption --help": 1.0,
    "a misspelt key": 1.0,
    "a data set that is not there": 1.0,
    "showtell caption, one picture": 5.0,
}


def main() -> None:
    """Measure, print and write ``startup.json``."""
    options = parser(__doc__)
    options.add_argument("--run", type=Path, help="a run folder (default: one made here)")
    options.add_argument("--picture", type=Path, help="the picture to caption (default: a scene)")
    chosen = options.parse_args()
    prepare(chosen)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        run = chosen.run or train_small(made)
        picture = chosen.picture or a_scene(made)
        timings = time_in_turns(works(run, picture), turns=chosen.turns)
    figures = [seconds(name, timings[name], at_most) for name, at_most in TARGETS.items()]
    report = Report("startup", timings, figures)
    report.show()
    report.save(chosen.output)


def works(run: Path, picture: Path) -> dict[str, Work]:
    """The processes to time."""
    return {
        "limit: import torch": process([sys.executable, "-c", "import torch"]),
        "train.py --help": process([*TRAIN, "--help"]),
        "showtell --help": process([*SHOWTELL, "--help"]),
        "showtell caption --help": process([*SHOWTELL, "caption", "--help"]),
        "a misspelt key": process([*TRAIN, "optim.lrr=1"], status=1),
        "a data set that is not there": process([*TRAIN, "data.root=nowhere"], status=1),
        "showtell caption, one picture": process([*SHOWTELL, "caption", str(run), str(picture)]),
    }


def process(command: Sequence[str], *, status: int = 0) -> Work:
    """Run a command to its end, in the temporary folder; it must end with ``status``."""
    return Work(partial(run_to_end, command, status), ONCE)


def run_to_end(command: Sequence[str], status: int) -> None:
    """Run a command; raise RuntimeError with its stderr unless it ends with ``status``."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode != status:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")


def train_small(folder: Path) -> Path:
    """Train a small run on a few scenes."""
    run = folder / "run"
    places = [f"{key}.root={folder / key}" for key in ("data", "features")]
    choices = ["experiment=smoke", "encoder=efficientnet_lite2", f"output.folder={run}"]
    run_to_end([*TRAIN, *choices, *places], 0)
    return run


def a_scene(folder: Path) -> Path:
    """Any picture below ``folder``, drawn there first if need be."""
    if not any(folder.rglob("*.jpg")):
        run_to_end([*SHOWTELL, "doctor", "experiment=smoke", f"data.root={folder / 'data'}"], 0)
    return sorted(folder.rglob("*.jpg"))[0]


def seconds(name: str, timing: Timing, at_most: float) -> Figure:
    """The median of a process's seconds, with its target."""
    ends = min(timing.seconds), max(timing.seconds)
    return Figure(name, timing.median_seconds, *ends, unit="s", target=at_most, at_most=True)


if __name__ == "__main__":
    main()
