"""Builds of features that are killed, run in a process of their own by ``test_extract``.

Usage: python killed_builds.py FOLDER MODE ... One process imports everything once and forks the
builders, so that dozens of them cost a few seconds. Each mode leaves ``FOLDER/MODE/store*`` beside
the ``FOLDER/MODE/unbroken`` it should equal.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tiny_encoder import tiny_encoder, write_pictures

from showtell import files
from showtell.vision import engines, extract

BATCH_SIZE, PER_SHARD = 4, 8


def build(folder: Path, store: str) -> None:
    extract.ensure_features(
        [(path.name, path) for path in (folder / "pictures").iterdir()],
        tiny_encoder(),
        ["pooled", "grid"],
        root=folder / store,
        batch_size=BATCH_SIZE,
        device=torch.device("cpu"),
        progress=False,
    )


def forked(work: Callable[[], None]) -> int:
    """The id of a child that does ``work`` and exits with 0, or with 1 and its traceback."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return process


def waited(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def at_random_moments(folder: Path, kills: int) -> None:
    """Kill builders of one store at random moments until one of them gets to its end."""
    moments = random.Random(0)
    for _ in range(kills):
        process = forked(lambda: build(folder, "store"))
        time.sleep(moments.uniform(0, 0.15))
        os.kill(process, signal.SIGKILL)
        if waited(process) == 0:
            return
    assert waited(forked(lambda: build(folder, "store"))) == 0


def at_each_step(folder: Path) -> None:
    """Kill a builder just before each of its flushes and moves in turn, and resume it each time."""
    for step in range(1000):
        process = forked(lambda step=step: (die_before(step), build(folder, f"store-{step}")))
        if waited(process) == 0:
            (folder / "steps").write_text(str(step))
            return
        assert waited(forked(lambda step=step: build(folder, f"store-{step}"))) == 0


def die_before(step: int) -> None:
    """Let ``step`` flushes and moves happen, and die instead of the next."""
    left = iter(range(step))

    def guarded(function: Callable) -> Callable:
        def call(*arguments: object) -> object:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    files.os.fsync = guarded(os.fsync)
    files.Path.replace = guarded(Path.replace)


def together(folder: Path) -> None:
    """Three builders of one store at once; each writes down how many images it encoded."""

    until = time.monotonic() + 60

    def work(number: int) -> None:
        encoded = 0
        encode_all = extract.encode_all

        def counting(items, *arguments):
            nonlocal encoded
            for encoded_image in encode_all(items, *arguments):
                encoded += 1
                (folder / f"begun-{number}").touch()
                # It holds two of the six shards by now, and goes on when another holds some too.
                while len(list(folder.glob("begun-*"))) < 2:
                    assert time.monotonic() < until, "the others have not begun"
                    time.sleep(0.01)
                yield encoded_image

        extract.encode_all = counting
        build(folder, "store")
        (folder / f"encoded-{number}").write_text(str(encoded))

    processes = [forked(lambda number=number: work(number)) for number in range(3)]
    assert [waited(process) for process in processes] == [0, 0, 0]


def after_a_death(folder: Path) -> None:
    """A builder dies with a shard in its hands while another waits for it."""
    read, write = os.pipe()

    def hang() -> None:
        def never(items: Iterator, *arguments: object) -> None:
            next(items)  # takes the first shard's lock
            os.write(write, b"!")
            time.sleep(1000)

        extract.encode_all = never
        build(folder, "store")

    holder = forked(hang)
    os.read(read, 1)  # it holds a lock now
    heir = forked(lambda: build(folder, "store"))
    manifests = folder / "store"
    while len(list(manifests.glob("*/grid/*-*.json"))) < 5:  # all shards but the one held
        time.sleep(0.01)
    time.sleep(0.1)
    assert os.waitpid(heir, os.WNOHANG) == (0, 0), "it must wait for the shard that is taken"
    os.kill(holder, signal.SIGKILL)
    waited(holder)
    assert waited(heir) == 0


MODES: dict[str, Callable[[Path], None]] = {
    "random": lambda folder: at_random_moments(folder, kills=5),
    "random-often": lambda folder: at_random_moments(folder, kills=20),
    "steps": at_each_step,
    "together": together,
    "death": after_a_death,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    extract.IMAGES_PER_SHARD = PER_SHARD
    for mode in sys.argv[2:]:
        folder = Path(sys.argv[1], mode)
        shards = 2 if mode == "steps" else 6
        if mode == "steps":  # nearly a hundred builds of 16 pictures, each in a process of its own
            engines.CONVERT_FROM_IMAGES = PER_SHARD * shards + 1
        write_pictures(folder / "pictures", PER_SHARD * shards)
        build(folder, "unbroken")
        MODES[mode](folder)
