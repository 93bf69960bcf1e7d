"""Evaluates a run on a split: captions, all metrics, and yardsticks to compare the scores with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from showtell import runs
from showtell.caption import Run, load_run
from showtell.config import INJECTED
from showtell.data.batches import FeatureSource
from showtell.data.records import evenly_spaced
from showtell.decoding.beam import Hypothesis
from showtell.errors import UserError
from showtell.files import check_writable
from showtell.inputs import Config, features_of, seen_features_of
from showtell.metrics.alarms import (
    Alarm,
    caption_alarms,
    feature_alarms,
    leak_alarms,
    shared_images_alarms,
)
from showtell.metrics.floors import (
    PEOPLE,
    Yardstick,
    constant_caption,
    human_ceiling,
    shuffled_captions,
    shuffled_cider,
)
from showtell.metrics.inputs import ScoringError
from showtell.metrics.intervals import Interval, bootstrap
from showtell.metrics.language import WordStatistics, caption_words, reference_words
from showtell.metrics.scores import DEFAULT_METRICS, CaptionScores, score_captions
from showtell.metrics.statistics import METRICS
from showtell.runs import TRAINING
from showtell.tables import print_alarms, print_scores, print_words
from showtell.types import CaptionData, CaptionedImage, Split
from showtell.vision.features import FeatureStore

DECODING_BATCH = 250
# Not METEOR: that of every reference against the others takes five times as long as the captions'.
PEOPLE_METRICS = ("BLEU", "ROUGE-L", "CIDEr")
# Enough to find faulty features; 53 MB for the grids of EfficientNet-Lite2.
SAMPLED_IMAGES = 256


@dataclass(frozen=True)
class Evaluation:
    """A run's captions of the images of one split, and their scores.

    ``written`` and ``people`` are language statistics of captions and references; ``alarms`` say
    what is probably wrong. ``yardsticks`` and ``intervals`` are empty if not asked for.
    """

    split: Split
    captions: dict[str, str]
    scores: CaptionScores
    written: WordStatistics
    people: WordStatistics
    yardsticks: tuple[Yardstick, ...]
    intervals: dict[str, Interval]
    alarms: tuple[Alarm, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of ``scores-<split>.json``, a flat mapping.

        Scores of a yardstick are under ``<yardstick>/<metric>``, language statistics of captions
        and references under ``captions/`` and ``people/``.
        """
        flat: dict[str, Any] = self.scores.to_json()
        for yardstick in self.yardsticks:
            flat |= {f"{yardstick.name}/{name}": value for name, value in yardstick.scores.items()}
        for name, interval in self.intervals.items():
            flat |= {f"95 % low/{name}": interval.low, f"95 % high/{name}": interval.high}
        flat |= {f"captions/{name}": value for name, value in self.written.figures().items()}
        return flat | {f"people/{name}": value for name, value in self.people.figures().items()}


def evaluate(folder: Path, split: Split, config: Config, data: CaptionData) -> Evaluation:
    """Score the best weights of the run in ``folder`` on a split of ``data``; write and print it.

    Beside the scores come their 95 % intervals, two floors that need no image, the human ceiling,
    and language statistics of the captions. An evaluation on the test split is recorded in
    ``run.json``, because the split is fresh only once.

    Raises:
        UserError: the data set lacks the split, or the run cannot be loaded.
    """
    weights = config["encoder"]["weights"]
    trained_with = runs.read_record(folder, needs=["encoder"])["encoder"].get("weights")
    check_writable(folder / f".scores-{split}.json")  # fail before minutes of work
    run = load_run(
        folder,
        # If they came from a file, the run folder has a copy; the file may be gone.
        encoder_weights=None if weights == trained_with else weights,
        accelerator=config["trainer"]["accelerator"],
    )
    images = data.split(split)
    if not images:
        raise UserError(f"{data.name} has no {split} images; it has {', '.join(data.splits)}")
    for note in (*data.notes, *changed_files(run.record, data)):
        print(f"note: {note}")
    store = features_of(images, run.encoder, run.feature_kind, config)
    seen = seen_features_of(images, store, run.encoder, run.feature_kind, config, run.views)
    if split == "test":
        _note_look(run)
    found = score_split(
        run,
        images,
        split,
        store,
        data.split("train"),
        seen=seen,
        metrics=METRICS,
        with_yardsticks=True,
    )
    title = f"{data.name} {split}, {len(images)} images"
    print_scores(title, found.scores, found.yardsticks, found.intervals)
    print_words(found.written, found.people)
    kinds = {alarm.name for alarm in found.alarms}
    earlier = runs.alarms_of(run.record).get(TRAINING, [])
    print_alarms([*(alarm for alarm in earlier if alarm.name not in kinds), *found.alarms])
    return found


def score_split(
    run: Run,
    images: Sequence[CaptionedImage],
    split: Split,
    store: FeatureStore,
    training: Sequence[CaptionedImage],
    *,
    seen: FeatureSource,
    metrics: Sequence[str],
    with_yardsticks: bool,
) -> Evaluation:
    """Caption every image of a split once, score all, and write it into the run folder.

    Args:
        store: the features of the original view of the images.
        training: the training images, for checks of captions copied from them.
        seen: the features to decode from, possibly of several views.
        metrics: see `score_captions`.
        with_yardsticks: whether to compute floors, ceiling and intervals, which takes seconds.
    """
    captions, unfinished = _write_captions(run, images, seen)
    references, known = _captions_of(images), _captions_of(training)
    scores = score_captions(captions, references, metrics, context=_context(run, split))
    language = {
        "training": [caption for each in known.values() for caption in each],
        "vocabulary": run.vocabulary.words,
    }
    found = Evaluation(
        split,
        captions,
        scores,
        written=caption_words(captions, references, **language, unfinished=unfinished),
        people=reference_words(references, **language),
        yardsticks=tuple(_yardsticks(known, references, captions)) if with_yardsticks else (),
        intervals=bootstrap(scores.statistics) if with_yardsticks else {},
    )
    contents = store.stored_contents([*references, *known])
    alarms = (
        *sampled_feature_alarms(images, store),
        *_alarms(found, known, references, contents, run.search.max_length),
    )
    found = replace(found, alarms=alarms)
    _write(run, found)
    return found


def changed_files(record: Mapping[str, Any], data: CaptionData) -> list[str]:
    """A sentence for each text file that has changed since the run was trained."""
    before: dict[str, str] = record["data"]["origin"]
    return [
        f"{name} is not the file this run was trained with"
        for name, checksum in data.origin.items()
        if before.get(name, checksum) != checksum
    ]


def _context(run: Run, split: Split) -> dict[str, object]:
    """What the signature says of the decoding: the split and every option in force."""
    options = {
        field.name: getattr(run.search, field.name)
        for field in fields(run.search)
        if field.name not in INJECTED["decoding"]
    }
    if not runs.is_ensemble(run.record):
        options.pop("pool", None)  # there is nothing to pool
    if len(run.views) > 1:
        options = {"views": "+".join(run.views), **options}
    names = {"beam_size": "beam"}
    in_force = {
        names.get(key, key): _told(value)
        for key, value in options.items()
        if value is not None and (value or key != "bad_endings")
    }
    return {"split": split, **in_force}


def _told(value: object) -> object:
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ",".join(map(str, value)) or "none"
    return value


def _captions_of(images: Sequence[CaptionedImage]) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in images}


def _write_captions(
    run: Run, images: Sequence[CaptionedImage], seen: FeatureSource
) -> tuple[dict[str, str], set[str]]:
    """One caption per image, decoded in batches, and the ids of images with cut-off captions."""
    found: dict[str, Hypothesis] = {}
    for first in range(0, len(images), DECODING_BATCH):
        image_ids = [image.image_id for image in images[first : first + DECODING_BATCH]]
        features = torch.from_numpy(seen.gather(seen.index(image_ids)))
        found.update(zip(image_ids, run.decode(features), strict=True))
    captions = {image_id: run.text_of(hypothesis) for image_id, hypothesis in found.items()}
    return captions, {image_id for image_id, hypothesis in found.items() if not hypothesis.ended}


def sampled_feature_alarms(
    images: Sequence[CaptionedImage], store: FeatureStore
) -> Iterator[Alarm]:
    """Alarms for the features of a sample of the ``images``."""
    sample = [image.image_id for image in evenly_spaced(images, SAMPLED_IMAGES)]
    yield from feature_alarms(store.gather(store.index(sample)))


def _alarms(
    found: Evaluation,
    training: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    contents: Mapping[str, str],
    max_length: int,
) -> Iterator[Alarm]:
    yield from caption_alarms(
        found.written,
        found.people,
        max_length=max_length,
        cider=found.scores.scores["CIDEr"],
        shuffled_cider=shuffled_cider(found.captions, references),
    )
    if found.split == "train":  # the model is meant to know these
        return
    ceiling = next((each.scores for each in found.yardsticks if each.name == PEOPLE), {})
    yield from leak_alarms(found.written, found.people, scores=found.scores.scores, ceiling=ceiling)
    yield from shared_images_alarms(training, references, contents=contents)


def _yardsticks(
    training: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    captions: Mapping[str, str],
) -> Iterator[Yardstick]:
    """The floors and the ceiling, as far as this data set allows them."""
    if training:
        with suppress(ScoringError):  # if no training caption has four words
            yield constant_caption(training, references, DEFAULT_METRICS)
    # A single image cannot be shuffled; single references cannot be compared with others.
    with suppress(ScoringError):
        yield shuffled_captions(captions, references, DEFAULT_METRICS, seed=0)
    with suppress(ScoringError):
        yield human_ceiling(references, PEOPLE_METRICS)


def _write(run: Run, found: Evaluation) -> None:
    rows = [{"image_id": image_id, "caption": text} for image_id, text in found.captions.items()]
    runs.write_json(run.folder / f"captions-{found.split}.json", rows)
    runs.save_statistics(run.folder, found.split, found.scores.statistics)
    runs.write_json(run.folder / f"scores-{found.split}.json", found.to_json())
    runs.write_alarms(run.folder, found.split, found.alarms)


def _note_look(run: Run) -> None:
    looks = runs.read_record(run.folder).get("test_looks", [])  # may have grown since
    now = datetime.now(UTC).isoformat(timespec="seconds")
    runs.update_record(run.folder, test_looks=[*looks, now])
    if looks:
        print(f"note: the test split was looked at {len(looks)} times before by this run")
