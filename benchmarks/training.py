"""Training from stored features: tokens per second of every model, and of common ways to train.

    python benchmarks/training.py [--data FOLDER] [--models lstm_glove ...]

A call trains on a few batches of 32 images with their five captions: forward, backward, clipping
and optimizer. Every model of conf/model is measured, beside a plain form of itself: its single
steps, or a Transformer's layers from PyTorch, over padded captions in shuffled order, each with a
copy of its image's features. ``lstm_glove`` has other plain forms: an LSTM cell called word by
word, and one sample for each prefix of a caption; it is also measured under Lightning with the
callbacks of a run. Each model has a process of its own, as in a training.
FLOP are those of the model's matrix products over real tokens, three times the forward ones,
whatever else a method computes. Without ``--data`` (Flickr8k in any layout) captions are made up
with Flickr8k's lengths.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import (
    Figure,
    Report,
    Timing,
    Work,
    in_plain_pytorch,
    matrix_product,
    memory_triad,
    parser,
    prepare,
    products_of,
    ratio,
    time_in_turns,
)
from plain_training import (
    CellLoop,
    PrefixLoop,
    PyTorchTransformer,
    StepLoop,
    cut_prefixes,
    pad_captions,
    take,
)
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from showtell.config import build, choices_of, compose
from showtell.data.batches import Batch, CaptionBatches, EncodedCaptions
from showtell.data.sources import flickr8k
from showtell.memory import keep_freed_memory
from showtell.models.transformer import TransformerDecoder
from showtell.parts import Settings
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import Vocabulary
from showtell.tracking import CsvCurves
from showtell.training.module import CaptioningModule
from showtell.training.objectives import CrossEntropy
from showtell.training.optimization import clip_gradients
from showtell.training.validation import GeneratedCaptions
from showtell.types import CaptionedImage

# Flickr8k with GloVe 6B of 50 numbers and EfficientNet-Lite2: its vocabulary, its features.
WORDS, VECTOR_WIDTH, FEATURE_SIZE, REGIONS = 2539, 50, 1280, 81
# How many of Flickr8k's 30,000 training captions have 1, 2, 3, ... words.
LENGTHS = (
    *(0, 15, 126, 346, 861, 1959, 2536, 2928, 3317, 3321, 3131, 2777, 2322, 1847, 1327, 977, 662),
    *(515, 366, 204, 136, 110, 74, 52, 33, 20, 11, 6, 10, 4, 3, 1, 2, 0, 0, 1),
)
MADE_IMAGES = 1024  # as many as are sorted by length together
CELL, PREFIX, LIGHTNING = "cell loop, padded", "a sample per prefix", "under Lightning"
EAGER = "plain, padded"
COMPARED = "lstm_glove"
SMALL, SMALL_STEPS = "a very small step", 50
PEAK = "limit: product 2048^3"
Step = Callable[[], object]


def made_images(count: int) -> list[CaptionedImage]:
    """Images with five captions each, of words with Zipf frequencies."""
    random = np.random.default_rng(0)
    shares = np.array(LENGTHS) / sum(LENGTHS)
    ranks = 1.0 / (np.arange(WORDS) + 2.7)

    def caption() -> str:
        length = 1 + random.choice(len(shares), p=shares)
        return " ".join(f"w{i}" for i in random.choice(WORDS, length, p=ranks / ranks.sum()))

    return [
        CaptionedImage(f"{i}.jpg", Path(f"{i}.jpg"), tuple(caption() for _ in range(5)), "train")
        for i in range(count)
    ]


def captions_of(data: Path | None, images: int) -> tuple[Sequence[CaptionedImage], Vocabulary]:
    """The training captions of the data set below ``data``, or made-up ones."""
    if data is None:
        words = [f"w{i}" for i in range(WORDS)]
        return made_images(images), Vocabulary(words, min_count=5, counts=[5] * WORDS)
    read = flickr8k(root=str(data), split_seed=0, skip_rejected=False).split("train")
    tokenized = (tokenize(caption) for image in read for caption in image.captions)
    return read[:images], Vocabulary.from_captions(tokenized, min_count=5)


class Features:
    """Features held in memory: rows of a small random table."""

    def __init__(self, kind: str) -> None:
        shape = (FEATURE_SIZE,) if kind == "pooled" else (REGIONS, FEATURE_SIZE)
        self._table = np.random.default_rng(0).random((64, *shape), dtype=np.float32)

    def index(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """A position for each image."""
        return np.arange(len(image_ids))

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Features (n, D) or (n, R, D)."""
        return self._table[positions % len(self._table)].astype(np.float16)


def typical(batches: Sequence[Batch], count: int) -> list[Batch]:
    """``count`` batches that represent the epoch: quantiles by number of tokens."""
    by_tokens = sorted(batches, key=lambda batch: len(batch.targets))
    return [by_tokens[(2 * i + 1) * len(by_tokens) // (2 * count)] for i in range(count)]


class Bench:
    """The data that all timed works share."""

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        vocabulary: Vocabulary,
        count: int,
        device: torch.device,
    ) -> None:
        self.vocabulary = vocabulary
        self.count = count
        self.device = device
        self._captions = EncodedCaptions(images, vocabulary)
        self.longest = int(self._captions.longest.max())

    def batches(
        self, kind: str, *, batch_size: int = 32, sorted_by_length: bool = True
    ) -> list[Batch]:
        """Typical batches of an epoch."""
        batches = CaptionBatches(
            self._captions,
            Features(kind),
            batch_size=batch_size,
            shuffle_seed=0 if sorted_by_length else None,
        )
        return [batch.to(self.device) for batch in typical(list(batches), self.count)]

    def decoder(self, settings: dict[str, Any]) -> nn.Module:
        """A new decoder whose word vectors are frozen, as in a run's first epochs."""
        torch.manual_seed(0)
        decoder: Any = build(
            "model",
            settings["model"],
            vocabulary_size=len(self.vocabulary),
            vector_width=VECTOR_WIDTH,
            feature_size=FEATURE_SIZE,
        )
        decoder.embedding.train_vectors(False)
        trained: nn.Module = decoder.train().to(self.device)
        return trained


def cross_entropy_of(settings: Settings) -> CrossEntropy:
    """The objective, which is cross-entropy in all that is measured here."""
    assert isinstance(settings.objective, CrossEntropy)
    return settings.objective


def train_ours(decoder: Any, batches: Sequence[Batch], settings: Settings) -> Step:
    """A call that takes a step on each batch, in a plain loop."""
    objective, rules = cross_entropy_of(settings), settings.optimization

    def loss(batch: Batch) -> Tensor:
        return objective(decoder, batch, progress=0.0).loss

    losses = [partial(loss, batch) for batch in batches]
    parameters, optimizer = list(decoder.parameters()), rules.optimizer(decoder)
    clip = partial(clip_gradients, parameters, rules.gradient_clip or math.inf)
    return partial(_train, optimizer, losses, clip)


def train_plainly(module: nn.Module, losses: Sequence[Callable[[], Tensor]], clip: float) -> Step:
    """A call that takes a step on each loss, with PyTorch's default AdamW."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    return partial(_train, optimizer, losses, partial(clip_grad_norm_, parameters, clip))


def _train(
    optimizer: torch.optim.Optimizer,
    losses: Sequence[Callable[[], Tensor]],
    clip: Callable[[], object],
) -> None:
    for compute in losses:
        loss = compute()
        optimizer.zero_grad()
        loss.backward()
        clip()
        optimizer.step()


@torch.no_grad()
def training_flop(decoder: Any, batches: Sequence[Batch]) -> float:
    """FLOP of the matrix products of a step on each batch, over real tokens and images.

    The differences between one caption of one token, one of two, and two of one token give the FLOP
    per token and per image. What is computed once a step, whatever the batch, does not count. The
    backward pass has two products for each one in the forward pass.
    """

    def flop(captions: int, tokens: int) -> float:
        batch, rows = batches[0], torch.arange(captions, device=batches[0].features.device)
        lengths = torch.full((captions,), tokens)
        return products_of(
            decoder, batch.features[:captions], batch.tokens[:captions, :tokens], lengths, rows
        ).flop

    of_token = flop(1, 2) - flop(1, 1)
    of_image = flop(2, 1) - flop(1, 1) - of_token
    count = sum(len(batch.targets) for batch in batches)
    images = sum(len(batch.image_ids) for batch in batches)
    return 3 * (of_token * count + of_image * images)


def works_of(model: str, bench: Bench) -> dict[str, Work]:
    """Works of a model: ours in a plain loop, its plain forms and, for `COMPARED`, Lightning."""
    config = compose([f"model={model}"])
    decoder: Any = bench.decoder(config)
    settings = Settings.of(config)
    batches = bench.batches(decoder.feature_kind)
    tokens = sum(len(batch.targets) for batch in batches)
    units = {"tokens": tokens, "FLOP": training_flop(decoder, batches)}
    works = {model: Work(train_ours(decoder, batches, settings), units)}
    if model != COMPARED:
        works |= eager_work(model, config, bench, units["FLOP"] / tokens)
    else:
        fit = UnderLightning(config, bench, batches)
        works[f"{model}, {LIGHTNING}"] = Work(fit, units, own_clock=True)
        works |= plain_works(config, bench, units["FLOP"] / tokens)
        works |= small_works(bench)
    return works


def small_works(bench: Bench) -> dict[str, Work]:
    """Steps so small that the overhead of Lightning shows."""
    sizes = ("embedding_width", "hidden_size", "dense_size")
    config = compose([f"model={COMPARED}", *(f"model.{name}=16" for name in sizes)])
    batches = bench.batches("pooled", batch_size=1) * SMALL_STEPS
    batches = batches[:SMALL_STEPS]
    decoder, settings = bench.decoder(config), Settings.of(config)
    units = {"steps": SMALL_STEPS}
    fit = UnderLightning(config, bench, batches)
    return {
        SMALL: Work(train_ours(decoder, batches, settings), units),
        f"{SMALL}, {LIGHTNING}": Work(fit, units, own_clock=True),
    }


def eager_work(
    model: str, config: dict[str, Any], bench: Bench, flop_per_token: float
) -> dict[str, Work]:
    """The work of a model's plain form."""
    smoothing = cross_entropy_of(Settings.of(config)).label_smoothing
    decoder: Any = bench.decoder(config)
    batches = bench.batches(decoder.feature_kind, sorted_by_length=False)
    captions = [pad_captions(batch) for batch in batches]
    form = PyTorchTransformer if isinstance(decoder, TransformerDecoder) else StepLoop
    plain = form(decoder, label_smoothing=smoothing).to(bench.device)
    useful = sum(each.useful for each in captions)
    call = train_plainly(plain, [partial(plain, each) for each in captions], 1.0)
    work = Work(call, {"tokens": useful, "FLOP": flop_per_token * useful})
    return {f"{model}, {EAGER}": in_plain_pytorch(work)}


def plain_works(config: dict[str, Any], bench: Bench, flop_per_token: float) -> dict[str, Work]:
    """The cell loop and the prefix loop, on captions in shuffled order."""
    smoothing = cross_entropy_of(Settings.of(config)).label_smoothing
    decoder: Any = bench.decoder(config)
    captions = [pad_captions(b) for b in bench.batches("pooled", sorted_by_length=False)]
    cell_loop = CellLoop(decoder, label_smoothing=smoothing).to(bench.device)
    prefix_loop = PrefixLoop(decoder, label_smoothing=smoothing).to(bench.device)
    # Padded as notebooks do, to the longest caption with BEGIN and END; as many rows per step as
    # there are captions in a batch of images.
    cut = cut_prefixes(captions[0], width=1 + bench.longest)
    rows = torch.randperm(len(cut.targets)).split(len(captions[0].tokens))[: bench.count]
    prefixes = [take(cut, chosen) for chosen in rows]
    useful = {
        CELL: sum(each.useful for each in captions),
        PREFIX: sum(len(each.targets) for each in prefixes),
    }
    calls = {
        CELL: train_plainly(cell_loop, [partial(cell_loop, c) for c in captions], 1.0),
        PREFIX: train_plainly(prefix_loop, [partial(prefix_loop, p) for p in prefixes], 1.0),
    }
    units = {name: {"tokens": n, "FLOP": flop_per_token * n} for name, n in useful.items()}
    return {name: in_plain_pytorch(Work(call, units[name])) for name, call in calls.items()}


class Loader:
    """Batches as a loader for Lightning, which would take each entry of a list as a loader."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


class EnoughStepsError(Exception):
    """Ends a fit before the end of the epoch, which would start a validation."""


class StepClock(Callback):
    """Times ``steps`` whole steps, from the start of the first to the start of one more."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._started = 0.0
        self.seconds = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock at the first step; stop it, and the fit, after the last."""
        if batch_idx == 0:
            self._started = time.perf_counter()
        if batch_idx == self._steps:
            self.seconds = time.perf_counter() - self._started
            raise EnoughStepsError


class UnderLightning:
    """A fit with everything that a run has except validation; only its steps are timed."""

    def __init__(self, config: dict[str, Any], bench: Bench, batches: Sequence[Batch]) -> None:
        self._config = config
        self._bench = bench
        self._batches = batches

    def __call__(self) -> float:
        """Train on the batches; return the seconds of their steps."""
        clock = StepClock(len(self._batches))
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore", category=UserWarning),
            contextlib.suppress(EnoughStepsError),
        ):
            self._fit(Path(folder), clock)
        torch.use_deterministic_algorithms(False)  # Lightning has left it on
        return clock.seconds

    def _fit(self, folder: Path, clock: StepClock) -> None:
        settings, vocabulary = Settings.of(self._config), self._bench.vocabulary
        module = CaptioningModule(
            self._bench.decoder(self._config),
            settings.search,
            GeneratedCaptions({}, vocabulary, max_length=settings.search.max_length, metrics=[]),
            objective=cross_entropy_of(settings),
            optimization=settings.optimization,
            text=settings.text,
            steps_per_epoch=len(self._batches),
            max_epochs=1,
        )
        kind: Any = self._bench.device.type
        rules = replace(settings.trainer, max_epochs=1, accelerator=kind)
        trainer = rules.build(
            folder,
            callbacks=[clock, *settings.callbacks.build(folder)],
            loggers=[CsvCurves(folder / "metrics.csv")],
            gradient_clip=settings.optimization.gradient_clip,
        )
        trainer.fit(module, Loader([*self._batches, self._batches[0]]))


def limits(batch: Batch, vocabulary_size: int, device: str) -> dict[str, Work]:
    """The limits of the machine: peak arithmetic, memory, and products of the model's sizes."""
    rows, positions = len(batch.lengths), len(batch.targets)
    return {
        PEAK: matrix_product(2048, 2048, 2048, device),
        "limit: product of a step": matrix_product(rows, 512, 2048, device),
        "limit: product with the vocabulary": matrix_product(
            positions, 512, vocabulary_size, device
        ),
        "limit: memory": memory_triad(device=device),
    }


def figures_of(model: str, timings: dict[str, Timing]) -> list[Figure]:
    """The figures of a model, with their targets."""
    ours = timings[model]

    def share(target: float | None) -> Figure:
        return ratio(f"{model}, share of the peak", ours, timings[PEAK], "FLOP", target=target)

    if model != COMPARED:
        plain = timings[f"{model}, {EAGER}"]
        return [share(None), ratio(f"{model} over {EAGER}", ours, plain, "tokens", target=2)]
    added = [
        1e3 * (a - b) / SMALL_STEPS
        for a, b in zip(
            timings[f"{SMALL}, {LIGHTNING}"].seconds, timings[SMALL].seconds, strict=True
        )
    ]
    return [
        ratio(f"{model} over the {CELL}", ours, timings[CELL], "tokens", target=2),
        ratio(f"{model} over {PREFIX}", ours, timings[PREFIX], "tokens", target=20),
        share(0.6),
        Figure(
            "Lightning and its callbacks, per step",
            statistics.median(added),
            min(added),
            max(added),
            "ms",
        ),
    ]


@dataclass(frozen=True)
class Measured:
    """What was measured of one model, and of the machine's limits beside it."""

    timings: dict[str, Timing]
    figures: list[Figure]
    facts: dict[str, Any]


def measure(model: str, chosen: argparse.Namespace) -> Measured:
    """Measure one model."""
    prepare(chosen)
    keep_freed_memory()  # as any training does; the plain forms gain as well
    count = 1 if chosen.quick else chosen.batches
    images, vocabulary = captions_of(chosen.data, 64 if chosen.quick else MADE_IMAGES)
    bench = Bench(images, vocabulary, count, torch.device(chosen.device))
    batch = bench.batches("pooled")[count // 2]
    works = works_of(model, bench) | limits(batch, len(vocabulary), chosen.device)
    timings = time_in_turns(works, turns=chosen.turns)
    facts = {
        "images a step": len(batch.image_ids),
        "captions a step": len(batch.lengths),
        "steps a call": count,
        "vocabulary": len(vocabulary),
        "captions": "made up" if chosen.data is None else "Flickr8k",
    }
    named = {
        f"{name} ({model})" if name.startswith("limit") else name: timings[name] for name in timings
    }
    return Measured(named, figures_of(model, timings), facts)


def main() -> None:
    """Measure, print and write ``training.json``."""
    options = parser(__doc__)
    options.add_argument("--data", type=Path, help="Flickr8k; captions are made up without")
    options.add_argument("--models", nargs="+", default=list(choices_of("model")))
    options.add_argument("--batches", type=int, default=6, help="steps of a call (%(default)s)")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = options.parse_args()
    prepare(chosen)
    # A process for each model, like a training: what earlier models have freed slows later ones.
    fresh = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as process:
        each = [process.submit(measure, model, chosen).result() for model in chosen.models]
    timings = {name: timing for part in each for name, timing in part.timings.items()}
    figures = [figure for part in each for figure in part.figures]
    report = Report("training", timings, figures, each[0].facts)
    report.show()
    report.save(chosen.output)


if __name__ == "__main__":
    main()
