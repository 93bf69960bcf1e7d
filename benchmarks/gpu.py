"""What a GPU makes of real data: the features of a data set, and the way to the best captions.

    python benchmarks/gpu.py data.root=FOLDER [encoder=efficientnet_lite2] [KEY=VALUE ...]

Whole processes are timed, from their start: ``showtell features`` into a new store, then
``train.py`` on these features, until the file of its best weights was written for the last time.
The GPU is busy while any of its kernels runs, by ``nvidia-smi``, asked ten times a second from the
first row of the learning curves to the last best weights; that includes validation.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

from measure import Figure, Report, Timing, parser, prepare

from showtell.runs import BEST_WEIGHTS
from showtell.tracking import METRICS_FILE

ROOT = Path(__file__).parents[1]
FEATURES_TARGET, TRAINING_TARGET, BUSY_TARGET = 20.0, 60.0, 0.8
ASKED_EVERY = 100  # milliseconds
# The first GPU that CUDA would use.
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
QUERY = (
    *("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"),
    f"--id={VISIBLE}",
)


def main() -> None:
    """Measure, print and write ``gpu.json``."""
    options = parser(__doc__)
    options.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="of train.py")
    options.set_defaults(turns=1)  # a minute each
    chosen = options.parse_args()
    prepare(chosen)
    ask_once()
    words = [*chosen.overrides, "tracking=disabled", "callbacks.progress_refresh=0"]
    if chosen.quick:
        words += ["trainer.limit_images=64", "trainer.max_epochs=2"]
    turns = [measure(words) for _ in range(chosen.turns)]
    report = report_of(turns)
    report.show()
    report.save(chosen.output)


@dataclass(frozen=True)
class Turn:
    """The figures of one turn.

    Attributes:
        features: seconds of ``showtell features``.
        best: seconds of ``train.py`` up to its best weights.
        busy: share of the time in which the GPU computed, 0 to 1.
        facts: the scores and the times of the training.
    """

    features: float
    best: float
    busy: float
    facts: dict[str, Any]


def measure(overrides: Sequence[str]) -> Turn:
    """One extraction and one training, in folders that are removed afterwards."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "run"
        words = [*overrides, f"features.root={made}/features"]
        features = seconds_of(["-m", "showtell", "features", *words])
        began = time.time()
        with busy_shares(folder / METRICS_FILE) as shares:
            whole = seconds_of(["train.py", *words, f"output.folder={folder}"])
        best = (folder / BEST_WEIGHTS).stat().st_mtime
        busy = until(shares, best)
        record = json.loads((folder / "run.json").read_text())
        scores = json.loads((folder / "scores-val.json").read_text())
        facts = {
            "images": record["data"]["images"],
            "BLEU-4": scores["BLEU-4"],
            "CIDEr": scores["CIDEr"],
            "seconds of the training": record["training_seconds"],
            "seconds of train.py": round(whole, 1),
            "samples of nvidia-smi": len(busy),
        }
        return Turn(features, best - began, statistics.mean(busy), facts)


def ask_once() -> None:
    """End with a sentence, before minutes of work, if the GPU cannot be asked."""
    try:
        float(subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"this needs one of NVIDIA's GPUs, and nvidia-smi to ask it: {error}")


def until(shares: Sequence[tuple[float, float]], last: float) -> list[float]:
    """The shares that were told up to the moment ``last``."""
    return [share for moment, share in shares if moment <= last]


@contextmanager
def busy_shares(curves: Path) -> Iterator[list[tuple[float, float]]]:
    """A growing list of (time, share of the last moments in which the GPU computed).

    It begins to grow when the file ``curves`` exists.
    """
    shares: list[tuple[float, float]] = []

    def read(lines: IO[str]) -> None:
        for line in lines:
            if curves.exists():
                shares.append((time.time(), float(line) / 100))

    with subprocess.Popen(
        [*QUERY, f"--loop-ms={ASKED_EVERY}"], stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        reader = Thread(target=read, args=(asking.stdout,))
        reader.start()
        try:
            yield shares
        finally:
            asking.terminate()
            reader.join()


def seconds_of(arguments: Sequence[str]) -> float:
    """Seconds of a whole Python process."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def report_of(turns: Sequence[Turn]) -> Report:
    """The timings of all turns, and their figures beside the targets."""
    timings = {
        "showtell features": Timing(tuple(turn.features for turn in turns), {"data sets": 1.0}),
        "train.py to its best": Timing(tuple(turn.best for turn in turns), {"trainings": 1.0}),
    }
    figures = [
        figure("features of the data set", [t.features for t in turns], "s", FEATURES_TARGET, True),
        figure("start to best weights", [t.best for t in turns], "s", TRAINING_TARGET, True),
        figure("GPU busy in training", [t.busy for t in turns], "x", BUSY_TARGET, False),
    ]
    return Report("gpu", timings, figures, {"turns": [turn.facts for turn in turns]})


def figure(name: str, values: Sequence[float], unit: str, target: float, at_most: bool) -> Figure:
    """The median of the turns, with its range."""
    middle = statistics.median(values)
    return Figure(name, middle, min(values), max(values), unit, target, at_most)


if __name__ == "__main__":
    main()
