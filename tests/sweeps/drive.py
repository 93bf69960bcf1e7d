"""A sweep of fake jobs in a process of its own, to be killed: SWEEP LOCKS SLOTS OVERRIDES..."""

import signal
import sys
import tempfile
from pathlib import Path

from showtell.sweeps.driver import Driver, Limits, summary
from showtell.sweeps.record import open_sweep
from showtell.sweeps.slots import find_slots

FAKE = Path(__file__).with_name("fake_job.py")


def drive(
    folder: Path,
    jobs: list[list[str]],
    *,
    slots: int = 2,
    limits: Limits = Limits(None, None),  # noqa: B008
) -> list[str]:
    """Run the sweep; return its summary."""
    with open_sweep(folder, ["seed=*"]) as sweep:
        mine = [sweep.add(overrides, overrides[:1]) for overrides in jobs]
        found = find_slots(on_gpus=False, jobs_per_gpu=1, cpu_slots=slots)
        program = [sys.executable, "-S", str(FAKE)]
        Driver(sweep, program, found, limits, [], print).run(mine)
        return summary(sweep, mine)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tempfile.tempdir = sys.argv[2]
    shared = sys.argv[5:]
    drive(
        Path(sys.argv[1]),
        [[f"seed={seed}", *shared] for seed in range(int(sys.argv[4]))],
        slots=int(sys.argv[3]),
    )
