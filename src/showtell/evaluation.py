"""A run scored on a split: its captions, every metric, and what to read the scores against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from showtell import runs
from showtell.caption import Run, load_run
from showtell.errors import UserError
from showtell.metrics.floors import Landmark, constant_caption, human_ceiling, shuffled_captions
from showtell.metrics.inputs import ScoringError
from showtell.metrics.intervals import Interval, bootstrap
from showtell.metrics.scores import CaptionScores, score_captions
from showtell.parts import Config, features_of
from showtell.types import CaptionData, CaptionedImage, Split
from showtell.vision.features import FeatureStore

DECODING_BATCH = 250
# Landmarks need no Java, and METEOR of a whole training set would take minutes.
LANDMARK_METRICS = ("BLEU", "ROUGE-L", "CIDEr")

console = Console(highlight=False, markup=False)


def evaluate(folder: Path, split: Split, config: Config, data: CaptionData) -> CaptionScores:
    """Score the best weights of the run in ``folder`` on a split of ``data``; write and print it.

    Beside the scores stand their 95 % intervals, two floors that need no picture, and what people
    reach. A look at the test split is written down in ``run.json``: it can only be fresh once.

    Raises:
        UserError: when the data set lacks the split, or the run cannot be loaded.
    """
    run = load_run(folder, encoder_weights=config["encoder"]["weights"])
    images = data.split(split)
    if not images:
        raise UserError(f"{data.name} has no {split} images; it has {', '.join(data.splits)}")
    for note in (*data.notes, *changed_files(run.record, data)):
        print(f"note: {note}")
    store = features_of(images, run.encoder, run.feature_kind, config)
    if split == "test":
        _note_look(run)
    scores, captions = score_split(run, images, split, store)
    landmarks = list(_landmarks(data, images, captions))
    intervals = bootstrap(scores.statistics)
    _write_scores(run, split, scores, landmarks, intervals)
    print_scores(f"{data.name} {split}, {len(images)} images", scores, landmarks, intervals)
    return scores


def score_split(
    run: Run, images: Sequence[CaptionedImage], split: Split, store: FeatureStore
) -> tuple[CaptionScores, dict[str, str]]:
    """Caption every image of a split once, score all, and write it into the run folder."""
    captions = _write_captions(run, images, store)
    search = run.search
    context = {
        "split": split,
        "beam": search.beam_size,
        "length_penalty": search.length_penalty,
        "max_length": search.max_length,
    }
    references = {image.image_id: image.captions for image in images}
    scores = score_captions(captions, references, context=context)
    rows = [{"image_id": image_id, "caption": text} for image_id, text in captions.items()]
    runs.write_json(run.folder / f"captions-{split}.json", rows)
    runs.save_statistics(run.folder, split, scores.statistics)
    _write_scores(run, split, scores)
    return scores, captions


def print_scores(
    title: str,
    scores: CaptionScores,
    landmarks: Sequence[Landmark] = (),
    intervals: Mapping[str, Interval] | None = None,
) -> None:
    """A table for people, times 100 as papers print them."""
    table = Table(
        title=f"{title}, scores x 100",
        box=SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,  # fits 80 columns with all metrics
    )
    table.add_column("", no_wrap=True)
    for name in scores.scores:
        table.add_column(name, justify="right")
    table.add_row("this run", *_cells(scores.scores, scores.scores))
    for bound in ("low", "high") if intervals else ():
        values = {name: getattr(interval, bound) for name, interval in (intervals or {}).items()}
        table.add_row(f"95 % {bound}", *_cells(scores.scores, values), style="dim")
    for landmark in landmarks:
        table.add_row(landmark.name, *_cells(scores.scores, landmark.scores), style="dim")
    console.print(table)
    for name, remedy in scores.skipped.items():
        console.print(f"{name} was skipped: {remedy}", markup=False)  # it holds brackets


def changed_files(record: Mapping[str, Any], data: CaptionData) -> list[str]:
    """A sentence for each text file that is not as it was when the run was trained."""
    before: dict[str, str] = record["data"]["origin"]
    return [
        f"{name} is not the file this run was trained with"
        for name, checksum in data.origin.items()
        if before.get(name, checksum) != checksum
    ]


def _cells(names: Mapping[str, float], values: Mapping[str, float]) -> list[str]:
    return [f"{100 * values[name]:.1f}" if name in values else "" for name in names]


def _write_captions(
    run: Run, images: Sequence[CaptionedImage], store: FeatureStore
) -> dict[str, str]:
    """One caption per image, decoded in batches."""
    captions: dict[str, str] = {}
    for first in range(0, len(images), DECODING_BATCH):
        image_ids = [image.image_id for image in images[first : first + DECODING_BATCH]]
        features = torch.from_numpy(store.gather(store.index(image_ids))).float()
        captions.update(zip(image_ids, run.write(features), strict=True))
    return captions


def _landmarks(
    data: CaptionData, images: Sequence[CaptionedImage], captions: Mapping[str, str]
) -> Iterator[Landmark]:
    """The floors and the ceiling that this data set allows."""
    references = {image.image_id: image.captions for image in images}
    training = {image.image_id: image.captions for image in data.split("train")}
    if training:
        yield constant_caption(training, references)
    # A single image cannot be shuffled, a single reference has nothing to agree with.
    with suppress(ScoringError):
        yield shuffled_captions(captions, references, LANDMARK_METRICS, seed=0)
    with suppress(ScoringError):
        yield human_ceiling(references, LANDMARK_METRICS)


def _write_scores(
    run: Run,
    split: Split,
    scores: CaptionScores,
    landmarks: Sequence[Landmark] = (),
    intervals: Mapping[str, Interval] | None = None,
) -> None:
    """``scores-<split>.json``: flat, a landmark's score under ``<landmark>/<metric>``."""
    flat: dict[str, Any] = scores.to_json()
    for landmark in landmarks:
        flat |= {f"{landmark.name}/{name}": value for name, value in landmark.scores.items()}
    for name, interval in (intervals or {}).items():
        flat |= {f"95 % low/{name}": interval.low, f"95 % high/{name}": interval.high}
    runs.write_json(run.folder / f"scores-{split}.json", flat)


def _note_look(run: Run) -> None:
    looks = run.record.get("test_looks", [])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    runs.update_record(run.folder, test_looks=[*looks, now])
    if looks:
        console.print(f"note: the test split was looked at {len(looks)} times before by this run")
