"""The whole chain on the built-in scenes: ``make demo``.

Trains ``lstm_glove`` on pictures the project draws itself, captions pictures it never saw, and
leaves everything in ``outputs/demo/``: the run, the captions, and a page to look at.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from showtell.config import build, compose
from showtell.report.gallery import Picture, write_gallery
from showtell.types import CaptionData

ROOT = Path(__file__).parents[1]
DEMO = Path("outputs/demo")
RUN, CAPTIONS, PAGE, UNSEEN = DEMO / "run", DEMO / "captions.json", DEMO / "index.html", 24


def say_and_do(*command: str) -> None:
    """Show a command as a user would type it, and run it."""
    print(f"\n$ {' '.join(command)}", flush=True)
    program = {"python": [sys.executable], "showtell": [sys.executable, "-m", "showtell"]}
    subprocess.run([*program[command[0]], *command[1:]], check=True, cwd=ROOT)


def main() -> None:
    """Features, training, captions, page."""
    began_at = time.monotonic()
    for old in (RUN, CAPTIONS, PAGE):
        shutil.rmtree(ROOT / old, ignore_errors=True) if old == RUN else old.unlink(missing_ok=True)
    say_and_do("python", "train.py", "experiment=demo", f"output.folder={RUN}")
    data: CaptionData = build("data", compose(["experiment=demo"])["data"])
    unseen = data.split("test")[:UNSEEN]
    paths = [str(image.path) for image in unseen]
    say_and_do("showtell", "caption", str(RUN), *paths, "--output", str(CAPTIONS))
    captions = {row["image_id"]: row["caption"] for row in json.loads(CAPTIONS.read_text())}
    pictures = [
        Picture(image.path, captions[image.image_id], image.captions, {}) for image in unseen
    ]
    write_gallery(pictures, PAGE, "Pictures the captioner never saw")
    print(f"\nlook at {PAGE} and {RUN / 'report.html'}")
    print(f"{time.monotonic() - began_at:.0f} s; next: python train.py model=lstm_glove data.root=")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
