"""Run every benchmark, one after the other, and write docs/performance.md from what they measured.

    python benchmarks/run_all.py [--quick] [--output outputs/bench] [--only startup scale ...]

Each runs in a process of its own. ``--quick`` only checks that they run, at tiny sizes; it discards
the results and leaves the page alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import RESULTS
from page import ORDER, write_page

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the benchmarks, then write the page; ends with status 1 if one fails."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="only see whether they run")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    options.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, metavar="NAME")
    chosen = options.parse_args()
    if chosen.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(chosen.only, ["--quick", "--output", folder])
        return
    elsewhere = chosen.output != RESULTS
    run(chosen.only, ["--output", str(chosen.output.resolve())] if elsewhere else [])
    write_page(chosen.output)


def run(names: Sequence[str], arguments: Sequence[str]) -> None:
    """Run all benchmarks, even after one has failed.

    Raises:
        SystemExit: some failed; names them.
    """
    failed = []
    for name in names:
        print(f"--- {name}", flush=True)
        # By relative path, because the command is saved with the results for others to repeat.
        command = [sys.executable, f"benchmarks/{name}.py", *arguments]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
