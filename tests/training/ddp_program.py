"""Two processes train under the real launcher: ``python ddp_program.py FOLDER STAGE``.

Each process writes ``FOLDER/<rank>.pid`` when it comes to the stage, after which it is killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

PROCESSES = 2
# Where a process can die: before it has met the others, in a step, and in a validation.
STAGES = ("start", "on_train_batch_start", "on_validation_batch_start")


def main(folder: Path, stage: str) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as train.py
    from showtell.training import ranks

    if not ranks.are_started():
        from showtell.training.launch import launch

        launch(PROCESSES)
        return

    from showtell.files import write_atomically

    def here(*_: Any) -> None:
        write_atomically(folder / f"{os.environ['RANK']}.pid", str(os.getpid()).encode())

    if stage == "start":
        here()
    from lightning.pytorch import Callback
    from small_training import build_training

    marker = type("Marker", (Callback,), {} if stage == "start" else {stage: here})()
    with ranks.joined_process_group(PROCESSES, on_gpus=False), ranks.delayed_errors():
        build_training(folder, callbacks=[marker], trainer={"max_epochs": 10**6}).fit()


if __name__ == "__main__":
    from showtell.errors import UserError

    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except UserError as error:
        sys.exit(f"error: {error}")
