"""What the validation at the end of an epoch costs beside the epoch's training steps.

    python benchmarks/validation.py [--run RUN] [data=flickr8k data.root=DIR features.root=DIR ...]

Overrides are those of `train.py`; features are taken from the store. Without any, the data are made
up, with as many images as Flickr8k. ``--run`` takes the weights of a trained run of the same model,
whose captions end where they should; on real data an untrained one writes up to
``decoding.max_length`` words, which makes the validation slower.

Validation is everything that `CaptioningModule` and its callbacks do then: the loss of some
references, a caption of each image, the scores, the alarms. Training steps are sampled.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import Figure, Report, Timing, Work, parser, prepare, time_in_turns
from torch import nn
from training import FEATURE_SIZE, WORDS, Features, made_images

from showtell import runs
from showtell.config import build, compose
from showtell.data.batches import Batch, CaptionBatches, FeatureSource
from showtell.data.datamodule import CaptionDataModule
from showtell.decoding.beam import BeamSearch
from showtell.experiment import EPOCH_METRICS
from showtell.inputs import Config
from showtell.memory import keep_freed_memory
from showtell.parts import Settings
from showtell.parts import prepare as prepare_parts
from showtell.text.vocabulary import Vocabulary
from showtell.training.alarms import CollapseAlarms
from showtell.training.loss import cross_entropy_
from showtell.training.module import BATCHES_PER_LOSS
from showtell.training.optimization import clip_gradients
from showtell.training.validation import GeneratedCaptions
from showtell.types import CaptionedImage, Split

SHARE = 0.05  # largest share of the epoch
SAMPLED_STEPS = 8  # several, since the lengths of their captions differ
WRITTEN = 11  # words of a caption of an untrained model, which would not end by itself
FLICKR8K = {"training": 6000, "validation": 1000}
QUICK = {"training": 64, "validation": 40}


@dataclass(frozen=True)
class Case:
    """A model and the data it is trained and validated on."""

    settings: Settings
    decoder: nn.Module
    vocabulary: Vocabulary
    images: dict[Split, tuple[CaptionedImage, ...]]
    features: FeatureSource


def made_case(config: Config, *, training: int, validation: int) -> Case:
    """Made-up images with five captions each; every generated caption has 11 words."""
    made = made_images(training + validation)
    images: dict[Split, tuple[CaptionedImage, ...]] = {
        "train": tuple(made[:training]),
        "val": tuple(made[training:]),
    }
    vocabulary = Vocabulary([f"w{i}" for i in range(WORDS)], min_count=5, counts=[5] * WORDS)
    settings = Settings.of(config)
    search = replace(settings.search, min_length=WRITTEN, max_length=WRITTEN, bad_endings=())
    decoder = build(
        "model",
        config["model"],
        vocabulary_size=len(vocabulary),
        feature_size=FEATURE_SIZE,
        vector_width=settings.text.vector_width,
    )
    features = Features(decoder.feature_kind)
    return Case(replace(settings, search=search), decoder, vocabulary, images, features)


def real_case(config: Config) -> Case:
    """The data and the model of the configuration."""
    parts = prepare_parts(config, build("data", config["data"]))
    return Case(parts.settings, parts.decoder, parts.vocabulary, parts.images, parts.store)


def works(case: Case, folder: Path) -> dict[str, Work]:
    """The works to time: some training steps, and each part of a validation."""
    settings, decoder = case.settings, case.decoder
    data = CaptionDataModule(
        case.images,
        case.features,
        case.vocabulary,
        batch_size=settings.trainer.batch_size,
        seed=0,
    )
    validation = list(data.val_dataloader())
    references = {image.image_id: image.captions for image in case.images["val"]}
    generated = GeneratedCaptions(
        references,
        case.vocabulary,
        max_length=settings.search.max_length,
        metrics=EPOCH_METRICS,
    )
    alarms = CollapseAlarms(
        folder, references, max_length=settings.search.max_length, trained_on_validation=False
    )

    def score() -> None:
        # A metric caches its result until its next update.
        generated._computed = None
        generated.compute()

    steps = training_steps(case, data.train_batches)
    decode(decoder, settings.search, validation, generated)
    return {
        "training steps": Work(
            lambda: [next(steps) for _ in range(SAMPLED_STEPS)], {"steps": SAMPLED_STEPS}
        ),
        "loss": Work(
            lambda: loss(decoder, validation[::BATCHES_PER_LOSS]), {"captions": len(references) / 2}
        ),
        "captions": Work(
            lambda: decode(decoder, settings.search, validation, generated),
            {"images": len(references)},
        ),
        "scores": Work(score, {"images": len(references)}),
        "alarms": Work(
            lambda: alarms.judge(generated.captions(), generated.unfinished(), 1.0),
            {"images": len(references)},
        ),
    }


def training_steps(case: Case, batches: CaptionBatches) -> Iterator[None]:
    """Endless optimizer steps, one per iteration, over the first batches of an epoch."""
    decoder: Any = case.decoder
    rules, smoothing = case.settings.optimization, case.settings.objective.label_smoothing
    optimizer = rules.optimizer(decoder)
    decoder.embedding.train_vectors(True)
    for batch in cycle(list(islice(batches, SAMPLED_STEPS))):
        decoder.train()
        logits_PV = decoder(batch.features, batch.tokens, batch.lengths, batch.image_of_row)
        nats = cross_entropy_(logits_PV, batch.targets, label_smoothing=smoothing)
        optimizer.zero_grad()
        nats.backward()
        if rules.gradient_clip is not None:
            clip_gradients(decoder.parameters(), rules.gradient_clip)
        optimizer.step()
        yield


@torch.inference_mode()
def loss(decoder: nn.Module, batches: Sequence[Batch]) -> None:
    """The cross-entropy of one reference of each image."""
    decoder.eval()
    for batch in batches:
        logits_PV = decoder(batch.features, batch.tokens, batch.lengths, batch.image_of_row)
        cross_entropy_(logits_PV, batch.targets, label_smoothing=0.0)


def decode(
    decoder: Any, search: BeamSearch, batches: Sequence[Batch], generated: GeneratedCaptions
) -> None:
    """Generate one caption for each image."""
    decoder.eval()
    generated.reset()
    for batch in batches:
        generated.update(batch.image_ids, search(decoder, batch.features))


def shares_of_epoch(timings: dict[str, Timing], steps_per_epoch: int) -> list[Figure]:
    """Seconds of the validation over those of the epoch, a ratio for each turn.

    The target is for the stricter ratio: over the training steps of the epoch alone, not over the
    whole epoch with its validation.
    """
    step, *validation = [timing.seconds for timing in timings.values()]
    of_steps, of_epoch = [], []
    for sampled, *parts in zip(step, *validation, strict=True):
        steps = sampled / SAMPLED_STEPS * steps_per_epoch
        of_steps.append(sum(parts) / steps)
        of_epoch.append(sum(parts) / (steps + sum(parts)))
    return [
        _figure("validation, share of the epoch's steps", of_steps, target=SHARE),
        _figure("validation, share of the epoch with itself", of_epoch, target=None),
    ]


def _figure(name: str, shares: Sequence[float], *, target: float | None) -> Figure:
    low, high = min(shares), max(shares)
    return Figure(name, statistics.median(shares), low, high, target=target, at_most=True)


def main() -> None:
    """Measure, print and write ``validation.json``."""
    options = parser(__doc__)
    options.add_argument("--run", type=Path, help="a run whose weights to take")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    chosen = options.parse_args()
    prepare(chosen)
    keep_freed_memory()  # as any training does
    config = compose(["tracking=disabled", *chosen.overrides])
    sizes = QUICK if chosen.quick else FLICKR8K
    case = real_case(config) if chosen.overrides else made_case(config, **sizes)
    if chosen.run:
        runs.load_weights(chosen.run, case.decoder)
    with TemporaryDirectory() as folder:
        timings = time_in_turns(works(case, Path(folder)), turns=chosen.turns)
    images = len(case.images["train"])
    steps = -(-images // case.settings.trainer.batch_size)
    report = Report(
        "validation",
        timings,
        shares_of_epoch(timings, steps),
        {"steps per epoch": steps, "images": {name: len(i) for name, i in case.images.items()}},
    )
    report.show()
    report.save(chosen.output)


if __name__ == "__main__":
    main()
