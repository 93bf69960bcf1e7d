"""Time of a sweep of equal jobs on two CPU slots, beside the same jobs one after the other.

    python benchmarks/sweep.py [--turns 1]

Both start ``train.py`` for every job, with one thread each, on pictures that are already drawn and
encoded. The limit is half the time: the rest is the driver, and what two processes take from each
other in memory and caches. A job is a training of half a minute, because one of a few seconds
(--quick) is mostly startup and METEOR's Java, which uses a second core if there is one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import Figure, Report, Timing, parser, prepare

PROGRAM = Path(__file__).parents[1] / "train.py"
JOBS, SLOTS = 8, 2
LONGER = ("data.train_images=240", "trainer.max_epochs=10", "callbacks.patience=null")
TARGET = 1.15


def main() -> None:
    """Measure, print and write ``sweep.json``."""
    options = parser(__doc__)
    options.set_defaults(turns=1)  # minutes each
    chosen = options.parse_args()
    prepare(chosen)
    jobs, job = (SLOTS, ()) if chosen.quick else (JOBS, LONGER)
    alone, together = [], []
    with tempfile.TemporaryDirectory() as folder:
        places = Path(folder)
        run(places, [*job, "seed=0"])  # draws and encodes the pictures
        for turn in range(chosen.turns):
            seeds = [f"seed={1 + turn * jobs + number}" for number in range(jobs)]
            alone.append(sum(run(places, [*job, seed]) for seed in seeds))
            listed = "seed=" + ",".join(seed.removeprefix("seed=") for seed in seeds)
            slots = f"hydra.launcher.cpu_slots={SLOTS}"
            together.append(run(places, ["-m", *job, listed, slots]))
    report = report_of(alone, together, jobs)
    report.show()
    report.save(chosen.output)


def run(places: Path, words: Sequence[str]) -> float:
    """Seconds of ``train.py`` with these arguments, its files and locks below ``places``."""
    roots = [f"{key}.root={places / key}" for key in ("data", "features", "output")]
    command = [sys.executable, str(PROGRAM), *words, "experiment=smoke", *roots]
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TMPDIR": str(places)}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **single})
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - began


def report_of(alone: Sequence[float], together: Sequence[float], jobs: int) -> Report:
    """The timings of all turns, and the ratio to the best that `SLOTS` slots could reach."""
    units = {"jobs": float(jobs)}
    timings = {
        "one after the other": Timing(tuple(alone), units),
        f"a sweep on {SLOTS} slots": Timing(tuple(together), units),
    }
    ratios = [SLOTS * b / a for a, b in zip(alone, together, strict=True)]
    figure = Figure(
        f"sweep of {jobs} jobs on {SLOTS} slots / half of one after the other",
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        target=TARGET,
        at_most=True,
    )
    return Report("sweep", timings, [figure], {"jobs": jobs, "slots": SLOTS})


if __name__ == "__main__":
    main()
