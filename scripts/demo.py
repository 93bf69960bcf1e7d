"""The whole pipeline on the built-in scenes: ``make demo``.

Trains ``lstm_glove`` on images that the project draws itself, captions images it never saw, and
leaves everything in ``outputs/demo/``: the run with its report, the captions, a page of images.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from showtell.config import build, compose
from showtell.report.gallery import Picture, write_gallery
from showtell.types import CaptionData

CHECKOUT = Path(__file__).parents[1]
DEMO = Path("outputs/demo")
RUN, CAPTIONS, PAGE = DEMO / "run", DEMO / "captions.json", DEMO / "index.html"
UNSEEN_PICTURES = 24
PROGRAMS = {"python": [sys.executable], "showtell": [sys.executable, "-m", "showtell"]}


def say_and_do(shown: str, *more: str) -> None:
    """Show a command as a user would type it, and run it; ``more`` arguments are not shown."""
    print(f"\n$ {shown}", flush=True)
    program, *arguments = shown.split()
    subprocess.run([*PROGRAMS[program], *arguments, *more], check=True)


def main() -> None:
    """Train, caption unseen images, and write the pages."""
    began_at = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    say_and_do(f"python train.py experiment=demo output.folder={RUN}")
    data: CaptionData = build("data", compose(["experiment=demo"])["data"])
    unseen = data.split("test")[:UNSEEN_PICTURES]
    print(f"\n{UNSEEN_PICTURES} pictures of the test split, which neither training nor choice saw:")
    paths = [str(image.path) for image in unseen]
    say_and_do(f"showtell caption {RUN} --output {CAPTIONS}", *paths)
    captions = {row["image_id"]: row["caption"] for row in json.loads(CAPTIONS.read_text())}
    pictures = [
        Picture(image.path, captions[image.image_id], image.captions, {}) for image in unseen
    ]
    write_gallery(pictures, PAGE, "Pictures the captioner never saw")
    say_and_do(f"showtell report {RUN}")
    print(f"\nlook at {PAGE} and {RUN / 'report.html'}  ({time.monotonic() - began_at:.0f} s)")


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said what was wrong
