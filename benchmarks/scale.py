"""The same training from a store of COCO's size as from one of Flickr8k's.

    python benchmarks/scale.py [--model attention_glove] [--distinct 256] [--folder DIR]
                               [--made DIR [--only-make]]

Both sets are synthetic (see made_sets.py): 123,287 images with 616,767 captions, and 8,000 with
40,000. Both stores hold the same kind of shards, and one decoder trains on both in turns, so that
only the size differs. Memory is the peak of a process that reads the captions of COCO's size,
trains and goes through a whole epoch of batches, minus the peak of one whose decoder trains on
batches made in memory. Features are read, never mapped, so that the peak resident set counts all.
With ``--distinct 0`` no shard is a link: 26 GB on disk, more than most machines can cache.
The sets are made anew and removed; those in ``--made`` are kept for runs with the same options.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from made_sets import (
    CAPTIONS_PER_IMAGE,
    COCO,
    FLICKR8K,
    IDENTITY,
    Size,
    contents,
    fill_store,
    write_captions,
)
from measure import RESULTS, Figure, Report, Timing, Work, parser, prepare, ratio, time_in_turns

from showtell.config import build, compose, target_of
from showtell.data.batches import Batch
from showtell.data.datamodule import CaptionDataModule
from showtell.data.flickr8k import read_flickr8k
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import BEGIN, UNKNOWN, Vocabulary
from showtell.types import CaptionedImage, Split
from showtell.vision.features import FeatureStore

MIN_COUNT = 5
VECTOR_WIDTH = 50
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
# Batches per sample: when training, and when only reading.
STEPS, READINGS = 5, 50
# Steps of the processes whose memory is measured, and tokens per caption in the batches made in
# memory: COCO's mean, and END.
MEMORY_STEPS = 20
WORDS_IN_MEMORY = 12
MEMORY_TARGET_GB = 1.5
QUICK = {"Flickr8k": Size(60, 300), "COCO": Size(900, 4_502)}
FULL = {"Flickr8k": FLICKR8K, "COCO": COCO}
Images = dict[Split, tuple[CaptionedImage, ...]]


@dataclass(frozen=True)
class Case:
    """A synthetic data set below ``folder``, and the model that trains on it."""

    folder: Path
    size: Size
    model: str

    @property
    def node(self) -> dict[str, Any]:
        """The configuration of the model."""
        node: dict[str, Any] = compose([f"model={self.model}"])["model"]
        return node

    def make(self, distinct: int) -> None:
        """Write captions and features; takes minutes at COCO's size."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            sys.exit(f"error: {self.folder} holds something else, or half a set: remove it first")
        write_captions(self.folder / "data", self.size)
        kind = target_of("model", self.node).feature_kind
        fill_store(self.folder / "features", self.size, kind, distinct=distinct)
        self._made.write_text(self._description(distinct))

    def is_made(self, distinct: int) -> bool:
        """Whether ``make`` has completed here with the same arguments."""
        return self._made.is_file() and self._made.read_text() == self._description(distinct)

    @property
    def _made(self) -> Path:
        return self.folder / "made.json"

    def _description(self, distinct: int) -> str:
        kind = target_of("model", self.node).feature_kind
        return json.dumps({**asdict(self.size), "kind": kind, "distinct": distinct})

    def images(self) -> Images:
        """The captions as any training reads them."""
        data = read_flickr8k(self.folder / "data", split_seed=0)
        return {name: data.split(name) for name in data.splits}

    def store(self) -> FeatureStore:
        """The features as any training opens them."""
        kind = target_of("model", self.node).feature_kind
        store = FeatureStore.open(self.folder / "features", IDENTITY, kind)
        return store.select(contents(self.size))

    def batches(self, images: Images, vocabulary: Vocabulary) -> CaptionDataModule:
        """The data module as any training has it."""
        return CaptionDataModule(images, self.store(), vocabulary, batch_size=BATCH_SIZE, seed=0)

    def learner(self, vocabulary_size: int) -> Learner:
        """The configured model with new weights."""
        sizes = {"feature_size": IDENTITY.size, "vector_width": VECTOR_WIDTH}
        decoder = build("model", self.node, vocabulary_size=vocabulary_size, **sizes)
        return Learner(decoder, torch.optim.AdamW(decoder.parameters(), lr=LEARNING_RATE))


@dataclass(frozen=True)
class Learner:
    """A decoder and its optimizer."""

    decoder: Any
    optimizer: torch.optim.Optimizer

    def learn(self, batches: Iterator[Batch], steps: int) -> None:
        """Take ``steps`` training steps."""
        for batch in itertools.islice(batches, steps):
            logits_PV = self.decoder(
                batch.features, batch.tokens, batch.lengths, batch.image_of_row
            )
            self.optimizer.zero_grad()
            F.cross_entropy(logits_PV, batch.targets).backward()
            self.optimizer.step()


def main() -> None:
    """Make both sets, measure, print, write ``scale.json``, remove the sets."""
    options = parser(__doc__)
    options.add_argument("--model", default="attention_glove", help="of conf/model (%(default)s)")
    options.add_argument(
        "--distinct", type=int, default=256, help="shards on disk, others link to them; 0: all"
    )
    options.add_argument("--folder", type=Path, default=RESULTS, help="to make the sets below")
    options.add_argument("--made", type=Path, help="sets that stay; made where they are not yet")
    options.add_argument("--only-make", action="store_true", help="make them and measure nothing")
    chosen = options.parse_args()
    if chosen.only_make and not chosen.made:
        options.error("--only-make has no effect without --made")
    prepare(chosen)
    with ExitStack() as stack:
        folder = chosen.made or stack.enter_context(_passing_folder(chosen.folder))
        sizes = QUICK if chosen.quick else FULL
        cases = {name: Case(folder / f"made-{name}", s, chosen.model) for name, s in sizes.items()}
        for case in cases.values():
            if not case.is_made(chosen.distinct):
                case.make(chosen.distinct)
        if chosen.only_make:
            return
        memory = measure_memory(cases["COCO"], 1 if chosen.quick else MEMORY_STEPS)
        report = throughput(cases, memory, chosen)
    report.show()
    report.save(chosen.output)


@contextmanager
def _passing_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder below ``parent``."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as made:
        yield Path(made)


def throughput(cases: dict[str, Case], memory: dict[str, Any], chosen: Any) -> Report:
    """Time training from both stores, and only reading from both, in turns."""
    images = {name: case.images() for name, case in cases.items()}
    vocabulary = count_words(images["COCO"])
    learner = cases["COCO"].learner(len(vocabulary))
    steps = 1 if chosen.quick else STEPS
    works = {}
    for name, case in cases.items():
        loader = case.batches(images[name], vocabulary).train_dataloader()
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for doing, work, count in (
            ("train", partial(learner.learn, batches, steps), steps),
            ("read", partial(exhaust, batches, READINGS), READINGS),
        ):
            works[f"{doing}, {name}'s size"] = Work(work, {"images": count * BATCH_SIZE})
    timings = time_in_turns(works, turns=chosen.turns)
    facts = {
        "model": chosen.model,
        "images": {name: case.size.images for name, case in cases.items()},
        "captions": {name: case.size.captions for name, case in cases.items()},
        "vocabulary": len(vocabulary),
        "shards_on_disk": chosen.distinct or "all",
        "memory": memory,
    }
    return Report("scale", timings, figures(timings, memory), facts)


def figures(timings: dict[str, Timing], memory: dict[str, Any]) -> list[Figure]:
    """Figures: rates at COCO's size over Flickr8k's, memory, and seconds of the startup stages."""
    train, read = (
        partial(
            ratio, over=timings[f"{doing}, COCO's size"], under=timings[f"{doing}, Flickr8k's size"]
        )
        for doing in ("train", "read")
    )
    beyond, held = memory["beyond_model_GB"], memory["held_GB"]
    stages = memory["whole"]["seconds"].items()
    return [
        train("training rate, COCO's size over Flickr8k's", unit="images", target=0.9),
        read("reading rate, COCO's size over Flickr8k's", unit="images"),
        Figure(
            "peak memory beyond the model", beyond, beyond, beyond, "GB", MEMORY_TARGET_GB, True
        ),
        Figure("memory that captions and store hold throughout", held, held, held, "GB"),
        *(
            Figure(f"COCO's size: {name}", seconds, seconds, seconds, "s")
            for name, seconds in stages
        ),
    ]


def exhaust(batches: Iterator[Batch], count: int) -> None:
    """Read ``count`` batches."""
    for _ in itertools.islice(batches, count):
        pass


def count_words(images: Images) -> Vocabulary:
    """The vocabulary, as a training builds it."""
    captions = (tokenize(caption) for image in images["train"] for caption in image.captions)
    return Vocabulary.from_captions(captions, min_count=MIN_COUNT)


def measure_memory(case: Case, steps: int) -> dict[str, Any]:
    """Memory of a training with and without a data set, each in its own process."""
    threads, fresh = torch.get_num_threads(), get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as process:
        whole = process.submit(whole_training, case, threads, steps).result()
        model = process.submit(model_alone, case, threads, steps, whole["vocabulary"]).result()
    beyond, held = (whole["memory"][kind] - model[kind] for kind in ("peak_GB", "own_GB"))
    return {
        "whole": whole,
        "model": model,
        "beyond_model_GB": round(beyond, 3),
        "held_GB": round(held, 3),
    }


def model_alone(case: Case, threads: int, steps: int, vocabulary_size: int) -> dict[str, float]:
    """Memory of a decoder that trains on batches made in memory, without a data set."""
    torch.set_num_threads(threads)
    case.learner(vocabulary_size).learn(batches_in_memory(case, vocabulary_size), steps)
    return resident()


def whole_training(case: Case, threads: int, steps: int) -> dict[str, Any]:
    """Memory of a training, and seconds of its stages, in the usual order."""
    torch.set_num_threads(threads)
    stages = Stages()
    images = stages.time("read the captions", case.images)
    vocabulary = stages.time("count the words", lambda: count_words(images))
    data = stages.time("open the store", lambda: case.batches(images, vocabulary))
    loader = stages.time("number the words", data.train_dataloader)
    learner = case.learner(len(vocabulary))
    learner.learn(iter(loader), steps)
    stages.time("the rest of an epoch, only read", lambda: exhaust(iter(loader), len(loader)))
    return {
        "memory": resident(),
        "seconds": stages.seconds,
        "steps": steps,
        "batches": len(loader),
        "vocabulary": len(vocabulary),
    }


class Stages:
    """Seconds of the stages of a training, each timed once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Run ``work`` and return its result; its seconds are kept under ``name``."""
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 2)
        return result


def batches_in_memory(case: Case, vocabulary_size: int) -> Iterator[Batch]:
    """Endless batches of random features and words, as large as those of the data set."""
    kind = target_of("model", case.node).feature_kind
    shape = IDENTITY.grid_shape if kind == "grid" else IDENTITY.pooled_shape
    rows = BATCH_SIZE * CAPTIONS_PER_IMAGE
    while True:
        words = torch.randint(UNKNOWN + 1, vocabulary_size, (rows, WORDS_IN_MEMORY))
        tokens = torch.cat([torch.full((rows, 1), BEGIN), words[:, :-1]], dim=1)
        yield Batch(
            image_ids=tuple(map(str, range(BATCH_SIZE))),
            features=torch.randn(BATCH_SIZE, *shape),
            tokens=tokens,
            targets=words.flatten(),
            lengths=torch.full((rows,), WORDS_IN_MEMORY),
            image_of_row=torch.arange(BATCH_SIZE).repeat_interleave(CAPTIONS_PER_IMAGE),
        )


def resident() -> dict[str, float]:
    """Memory of this process in GB: peak resident set, and resident memory now, own and of files.

    File pages are those of libraries: shared between processes, and dropped when memory is needed
    elsewhere. Only on Linux.
    """
    names = {"VmHWM": "peak_GB", "RssAnon": "own_GB", "RssFile": "files_GB"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kibibytes = {words[0].rstrip(":"): words[1] for words in lines if len(words) > 1}
    return {names[key]: round(int(kibibytes[key]) * 1024 / 1e9, 3) for key in names}


if __name__ == "__main__":
    main()
