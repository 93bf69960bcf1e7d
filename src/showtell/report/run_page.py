"""The report about one run: its settings, learning curves, scores and captions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from showtell.metrics.inputs import read_captions
from showtell.metrics.scores import score_captions
from showtell.report.attention_maps import attention_section
from showtell.report.available_data import AvailableData, captioned, find_data_set
from showtell.report.curves import METRICS_FILE, read_curves
from showtell.report.gallery import Card, Picture, cards
from showtell.report.origin import facts_of, summary_of
from showtell.report.page import write_page
from showtell.report.results import read_scores
from showtell.report.words import words_section
from showtell.runs import alarms_of, read_config, read_record
from showtell.types import CaptionedImage, Split

REPORT = "report.html"
SHOWN_BEST, SHOWN_RANDOM = 6, 12
# Images of each gallery whose attention is shown for every word.
ATTENTION_IMAGES = 2
# Galleries show the first split that has captions. The test split comes second, because whoever
# looks through its images begins to tune on them.
SCORED_SPLITS: tuple[Split, ...] = ("val", "test")
# CIDEr weighs words by how informative they are; ROUGE-L ranks the many with a CIDEr of 0.
RANKING = ("CIDEr", "ROUGE-L")


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some images under a heading."""

    title: str
    cards: list[Card]


def write_report(run_folder: Path, output: Path | None = None) -> Path:
    """Write one self-contained HTML page about a run; return where it is.

    Captions are ranked and compared with the references of the data set named in ``config.yaml``;
    if that is not available, the page has no images and says so. A run that is unfinished or failed
    gets a page with what there is.

    Args:
        run_folder: the folder of the run.
        output: the file to write; ``report.html`` in the run folder by default.

    Raises:
        UserError: this is not a run folder, one of its files is damaged, or the page cannot be
            written.
    """
    record = read_record(run_folder)
    run = summary_of(record)
    config = read_config(run_folder)
    available = find_data_set(config, record)
    split, captions = _captions(run_folder)
    curves = read_curves(run_folder / METRICS_FILE)
    best = curves.best(config.get("callbacks", {}).get("monitor"))
    galleries, problem = _galleries(captions, available)
    return write_page(
        output or run_folder / REPORT,
        "run.html",
        title=run.title,
        folder=run_folder.resolve().name,
        run=run,
        alarms=alarms_of(record),
        scores=[scores for s in SCORED_SPLITS if (scores := read_scores(run_folder, s))],
        best=best,
        charts=curves.charts(best),
        split=split,
        galleries=galleries,
        problem=problem,
        attention=attention_section(
            run_folder, record, [c for g in galleries for c in g.cards[:ATTENTION_IMAGES]]
        ),
        words=words_section(run_folder, split, captions, available.data),
        facts=facts_of(record),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _captions(run_folder: Path) -> tuple[Split, dict[str, str]]:
    """The first split that has captions, and its captions, image id -> caption."""
    for split in SCORED_SPLITS:
        path = run_folder / f"captions-{split}.json"
        if path.exists():
            return split, read_captions(path)
    return SCORED_SPLITS[0], {}


def _galleries(
    captions: Mapping[str, str], available: AvailableData
) -> tuple[list[Gallery], str | None]:
    """Galleries of the best, random and worst captions; and the data set's problem, if any."""
    if available.data is None or not captions:
        return [], available.problem
    images = captioned(captions, available.data)
    if not images:
        return [], "it holds none of the captioned pictures"
    pictures = _ranked(captions, images)
    count = min(SHOWN_BEST, len(pictures) // 3)
    best, worst = pictures[:count], pictures[len(pictures) - count :][::-1]
    # From all images, the best and the worst included, to be a fair sample.
    drawn = random.Random(0).sample(pictures, min(SHOWN_RANDOM, len(pictures)))
    parts = {"Best": best, "Drawn at random": drawn, "Worst": worst}
    return [Gallery(t, cards(chosen)) for t, chosen in parts.items() if chosen], available.problem


def _ranked(captions: Mapping[str, str], images: Sequence[CaptionedImage]) -> list[Picture]:
    """The images, sorted from the best caption to the worst."""
    scores = score_captions(
        {image.image_id: captions[image.image_id] for image in images},
        {image.image_id: image.captions for image in images},
        metrics=RANKING,
    ).per_image
    pictures = [
        Picture(
            image.path,
            captions[image.image_id],
            image.captions,
            {name: scores[image.image_id][name] for name in RANKING},
        )
        for image in images
    ]
    return sorted(pictures, key=lambda p: [-p.scores[name] for name in RANKING])
