"""A training whose W&B folder is a disk of its own, which fills up: ``full_disk.py FOLDER``.

Run it in a mount namespace of its own (``unshare --map-root-user --mount``): the disk is a small
piece of memory, gone with the process. What W&B had told is in
``told.json``, what it had written in ``first`` and, once there was room again, in ``second``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

DISK_MEGABYTES = 3
STEPS = 4000


def main(folder: Path) -> None:
    wandb_folder = folder / "wandb"
    wandb_folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "none", str(wandb_folder)]
    subprocess.run(mount, check=True)

    from test_tracking import log, make_tracker

    from showtell import tracking

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracker = make_tracker(folder)
        curves = {f"curve/{number}": 0.5 for number in range(20)}
        for step in range(STEPS):
            log(tracker, step, **curves)
        tracker.summarize({"best/BLEU-4": 0.5})
        tracker.finish(exit_code=0)
        told = [str(each.message) for each in caught if "W&B" in str(each.message)]

        (wandb_folder / "ballast").write_bytes(bytes(os.statvfs(wandb_folder).f_bavail * 4096))
        make_tracker(folder).finish(exit_code=0)
        told_of_none = [str(each.message) for each in caught if "W&B" in str(each.message)]
        (wandb_folder / "ballast").unlink()
        shutil.copytree(wandb_folder, folder / "first", symlinks=True)
        for file in wandb_folder.glob("offline-run-*"):
            shutil.rmtree(file)
        with make_tracker(folder) as again:
            log(again, STEPS, **curves)
        tracking._abandon_service()  # which closes the file
        shutil.copytree(wandb_folder, folder / "second", symlinks=True)
    answer = {"full": told, "full at the start": told_of_none[len(told) :]}
    (folder / "told.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
