"""The page about one run: what it is, how it learnt, how well it writes, and what it writes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from showtell.metrics.inputs import read_captions
from showtell.metrics.scores import score_captions
from showtell.report.at_hand import AtHand, captioned, data_set_at_hand
from showtell.report.curves import METRICS_FILE, read_curves
from showtell.report.gallery import Card, Picture, cards
from showtell.report.looking import looking_section
from showtell.report.origin import facts_of, summary_of
from showtell.report.page import write_page
from showtell.report.results import read_scores
from showtell.report.words import words_section
from showtell.runs import alarms_of, read_config, read_record
from showtell.types import CaptionedImage, Split

REPORT = "report.html"
SHOWN_BEST, SHOWN_RANDOM = 6, 12
# Of each gallery, the pictures that are shown once more for every word.
LOOKED_AT = 2
# The test split comes second: whoever looks through its pictures begins to tune on them.
SCORED_SPLITS: tuple[Split, ...] = ("val", "test")
# CIDEr weighs words by how telling they are; ROUGE-L parts the many with a CIDEr of 0.
RANKING = ("CIDEr", "ROUGE-L")


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some pictures under a heading."""

    title: str
    cards: list[Card]


def write_report(run_folder: Path, output: Path | None = None) -> Path:
    """Write one self-contained HTML page about a run; return where it is.

    Captions are ranked and compared with the references of the data set named in ``config.yaml``;
    where that is not at hand the page is made without pictures and says so. A run that has not
    finished, or failed, gets a page with what there is.

    Args:
        run_folder: the folder of the run.
        output: the file to write; ``report.html`` in the run folder by default.

    Raises:
        UserError: this is no run folder, one of its files is damaged, or the page cannot be
            written.
    """
    record = read_record(run_folder)
    run = summary_of(record)
    config = read_config(run_folder)
    at_hand = data_set_at_hand(config, record)
    split, captions = _captions(run_folder)
    curves = read_curves(run_folder / METRICS_FILE)
    best = curves.best(config.get("callbacks", {}).get("monitor"))
    galleries, problem = _galleries(captions, at_hand)
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
        looking=looking_section(
            run_folder, record, [c for g in galleries for c in g.cards[:LOOKED_AT]]
        ),
        words=words_section(run_folder, split, captions, at_hand.data),
        facts=facts_of(record),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _captions(run_folder: Path) -> tuple[Split, dict[str, str]]:
    """The captions of the first split that has some, image id -> caption."""
    for split in SCORED_SPLITS:
        path = run_folder / f"captions-{split}.json"
        if path.exists():
            return split, read_captions(path)
    return SCORED_SPLITS[0], {}


def _galleries(captions: Mapping[str, str], at_hand: AtHand) -> tuple[list[Gallery], str | None]:
    """Best, random (of all) and worst pictures, and what is to be said of their data set."""
    if at_hand.data is None or not captions:
        return [], at_hand.problem
    images = captioned(captions, at_hand.data)
    if not images:
        return [], "it holds none of the captioned pictures"
    pictures = _ranked(captions, images)
    count = min(SHOWN_BEST, len(pictures) // 3)
    best, worst = pictures[:count], pictures[len(pictures) - count :][::-1]
    # Out of all: what a reader takes for a sample must be one, extremes too.
    drawn = random.Random(0).sample(pictures, min(SHOWN_RANDOM, len(pictures)))
    parts = {"Best": best, "Drawn at random": drawn, "Worst": worst}
    return [Gallery(t, cards(chosen)) for t, chosen in parts.items() if chosen], at_hand.problem


def _ranked(captions: Mapping[str, str], images: Sequence[CaptionedImage]) -> list[Picture]:
    """The pictures from the best caption to the worst."""
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
