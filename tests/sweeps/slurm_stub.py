"""What submitit needs of SLURM, on this machine: the name it is called by says which command.

``SLURM_STUB`` names the folder where it keeps its state: a file ``<task>.pid`` for each task that
runs, and ``requeue-<task>`` for one that shall run again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol", "scancel")
ARRAY = "4711"


def install(folder: Path) -> None:
    """Put all commands into ``folder``, to be set first on PATH."""
    folder.mkdir()
    for name in COMMANDS:
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        file.chmod(0o755)


def sbatch(state: Path, script: str) -> None:
    """Take the script and run the tasks of its array behind the caller's back."""
    shutil.copy(script, state / "script.sh")
    subprocess.Popen(  # without the pipes of the caller, who waits for their end
        [sys.executable, __file__, "controller"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"Submitted batch job {ARRAY}")


def controller(state: Path) -> None:
    """Run each task, and again as long as that is asked for."""
    script = state / "script.sh"
    last = re.search(r"--array=0-(\d+)", script.read_text())
    for number in range(int(last[1]) + 1 if last else 1):
        task = f"{ARRAY}_{number}"
        environment = {
            **os.environ,
            **{"SLURM_JOB_ID": str(int(ARRAY) + number), "SLURM_ARRAY_JOB_ID": ARRAY},
            **{"SLURM_ARRAY_TASK_ID": str(number), "SLURM_JOB_NUM_NODES": "1"},
            **{"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "showtell", "SLURM_JOB_NODELIST": "here"},
        }
        while True:
            (state / f"requeue-{task}").unlink(missing_ok=True)
            subprocess.run(["bash", str(script)], env=environment, check=False)
            if not (state / f"requeue-{task}").exists():
                break


def srun(state: Path, *words: str) -> None:
    """Become the task, with its own output and rank."""
    array, number = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    streams = {"--output": 1, "--error": 2}
    command = list(words)
    while command[0].startswith("-"):
        option = command.pop(0)
        if option in streams:
            name = command.pop(0)
            for mark, value in (("%A", array), ("%a", number), ("%t", "0")):
                name = name.replace(mark, value)
            while not Path(name).parent.is_dir():  # submitit makes it once it knows the array
                time.sleep(0.1)
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), streams[option])
    (state / f"{array}_{number}.pid").write_text(str(os.getpid()))
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    os.execvp(command[0], command)


def sacct(state: Path, *_: str) -> None:
    """Nothing has an end by SLURM: submitit sees the results."""
    print("JobID|State|NodeList")


def scontrol(state: Path, verb: str, task: str) -> None:
    """Queue a task again."""
    (state / f"{verb}-{task}").touch()


def scancel(state: Path, *_: str) -> None:
    """Nothing is ever cancelled."""


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["SLURM_STUB"]), *sys.argv[2:])
