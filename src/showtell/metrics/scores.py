"""The one front end to all scores: validation, evaluation, comparison and training use it.

Raw captions and references go in. Their words are those of `showtell.text.tokenizer`, equal to
the COCO evaluation's; BLEU, ROUGE-L, METEOR and SPICE are pycocoevalcap's own scorers, CIDEr-D is
`showtell.metrics.cider`, equal to pycocoevalcap's to 1e-9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any

from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from pycocoevalcap.rouge.rouge import Rouge

from showtell.metrics.cider import CiderD
from showtell.metrics.inputs import UnknownMetricError, captions_of, check_captions
from showtell.metrics.java import INSTALL_JAVA
from showtell.metrics.meteor import MeteorError, shared_meteor
from showtell.metrics.spice import SpiceError, spice, spice_obstacle
from showtell.text.tokenizer import tokenize

METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
DEFAULT_METRICS = METRICS[:4]  # SPICE needs a large download

_BLEU_ORDER = 4

# Corpus score and score of each image, in the order of the images.
_Column = tuple[float, Sequence[float]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    ``scores`` maps BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE, as far as they were asked
    for and could run, to the score of the whole set: fractions, but CIDEr on its own scale of 0
    to 10. ``per_image`` has the same names for each image; BLEU is smoothed there as the COCO
    evaluation does. ``skipped`` names each metric that could not run with the remedy, ``notes``
    what a reader must know about those that did. ``signature`` says how the numbers came about.
    """

    scores: dict[str, float]
    per_image: dict[str, dict[str, float]]
    skipped: dict[str, str]
    notes: tuple[str, ...]
    signature: str
    images: int
    references: int

    def to_json(self) -> dict[str, Any]:
        """The flat form of ``scores-*.json``."""
        counts = {"images": self.images, "references": self.references}
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {**self.scores, **counts, "signature": self.signature, **skipped}


def score_captions(
    captions: Mapping[str, str] | Sequence[Mapping[str, Any]],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    context: Mapping[str, object] | None = None,
) -> CaptionScores:
    """Score one raw caption per image against its raw references.

    The references are tokenized and weighed once: calling this again with the same ones, as
    validation does after every epoch, costs only the captions.

    Args:
        captions: image id -> caption, or the rows of a COCO results file.
        references: image id -> its references, as many as there are.
        metrics: names out of BLEU, METEOR, ROUGE-L, CIDEr and SPICE.
        context: what else the signature should say, such as the split or the beam size.

    Raises:
        ScoringError: ids or texts that cannot be scored; see `showtell.metrics.inputs`.
        UnknownMetricError: a name that is none of the five.
    """
    if not isinstance(captions, Mapping):
        captions = captions_of(captions, source="the captions")
    _check_metrics(metrics)
    check_captions(captions, references)
    weighed = _weigh(tuple((image_id, tuple(references[image_id])) for image_id in captions))
    hypotheses = [" ".join(tokenize(caption)) for caption in captions.values()]
    columns: dict[str, _Column] = {}
    skipped: dict[str, str] = {}
    for metric in (name for name in METRICS if name in metrics):
        try:
            columns |= _SCORERS[metric](hypotheses, weighed)
        except (MeteorError, SpiceError) as error:
            skipped[metric] = str(error)
    return CaptionScores(
        scores={name: float(corpus) for name, (corpus, _) in columns.items()},
        per_image={
            image_id: {name: float(each[row]) for name, (_, each) in columns.items()}
            for row, image_id in enumerate(captions)
        },
        skipped=skipped,
        notes=tuple(_notes(columns, len(captions))),
        signature=_signature(columns, weighed, context or {}),
        images=len(captions),
        references=weighed.count,
    )


def _check_metrics(metrics: Sequence[str]) -> None:
    if isinstance(metrics, str) or not metrics or set(metrics) - set(METRICS):
        raise UnknownMetricError(
            f"cannot score {metrics!r}: give a list of names out of {', '.join(METRICS)}"
        )


def _notes(columns: Mapping[str, _Column], images: int) -> Iterator[str]:
    if "CIDEr" in columns and images == 1:
        yield "CIDEr of a single image is 0 by definition: every word is in every document"


class _WeighedReferences:
    """The references of some images, with everything a metric can compute from them alone."""

    def __init__(self, references: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
        self.image_ids = tuple(image_id for image_id, _ in references)
        self.sentences = [[" ".join(tokenize(s)) for s in each] for _, each in references]
        self.count = sum(map(len, self.sentences))

    @cached_property
    def bleu(self) -> list[Any]:
        """What pycocoevalcap's BLEU needs to know of each image's references."""
        return [cook_refs(sentences) for sentences in self.sentences]

    @cached_property
    def cider(self) -> CiderD:
        """CIDEr-D whose document frequencies come from these references."""
        # Like pycocoevalcap, split at any white space: a token may hold a non-breaking space.
        tokens = [[sentence.split() for sentence in each] for each in self.sentences]
        return CiderD(dict(zip(self.image_ids, tokens, strict=True)))

    @cached_property
    def digest(self) -> str:
        """The start of the SHA-256 of ids and words."""
        rows = zip(map(str, self.image_ids), self.sentences, strict=True)
        text = "\n".join("\t".join([image_id, *each]) for image_id, each in sorted(rows))
        return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:12]


# Two sets: those of validation and of the split it is a part of.
_weigh = lru_cache(maxsize=2)(_WeighedReferences)


def _bleu(hypotheses: Sequence[str], references: _WeighedReferences) -> dict[str, _Column]:
    scorer = BleuScorer(n=_BLEU_ORDER)
    scorer.crefs = references.bleu
    scorer.ctest = list(map(cook_test, hypotheses, references.bleu))
    corpus, each = scorer.compute_score(option="closest", verbose=0)
    return {f"BLEU-{n + 1}": (corpus[n], each[n]) for n in range(_BLEU_ORDER)}


def _meteor(hypotheses: Sequence[str], references: _WeighedReferences) -> dict[str, _Column]:
    meteor = shared_meteor()
    if meteor is None:
        raise MeteorError(f"METEOR needs a Java runtime: {INSTALL_JAVA}")
    return {"METEOR": meteor.score(hypotheses, references.sentences)}


def _rouge(hypotheses: Sequence[str], references: _WeighedReferences) -> dict[str, _Column]:
    rouge = Rouge()
    pairs = zip(hypotheses, references.sentences, strict=True)
    each = [rouge.calc_score([hypothesis], sentences) for hypothesis, sentences in pairs]
    return {"ROUGE-L": (sum(each) / len(each), each)}


def _cider(hypotheses: Sequence[str], references: _WeighedReferences) -> dict[str, _Column]:
    pairs = zip(hypotheses, references.image_ids, strict=True)
    each = [references.cider.score(hypothesis.split(), i) for hypothesis, i in pairs]
    return {"CIDEr": (sum(each) / len(each), each)}


def _spice(hypotheses: Sequence[str], references: _WeighedReferences) -> dict[str, _Column]:
    if obstacle := spice_obstacle():
        raise SpiceError(obstacle)
    image_ids = references.image_ids
    corpus, scores = spice(
        dict(zip(image_ids, hypotheses, strict=True)),
        dict(zip(image_ids, references.sentences, strict=True)),
    )
    return {"SPICE": (corpus, [scores[image_id] for image_id in image_ids])}


_SCORERS = {"BLEU": _bleu, "METEOR": _meteor, "ROUGE-L": _rouge, "CIDEr": _cider, "SPICE": _spice}


def _signature(
    columns: Mapping[str, _Column], references: _WeighedReferences, context: Mapping[str, object]
) -> str:
    """``name:value`` pairs that must agree before two results may be compared."""
    scorer = f"pycocoevalcap-{version('pycocoevalcap')}"
    per_image = sorted({len(sentences) for sentences in references.sentences})
    facts: dict[str, object] = {
        "metrics": ",".join(columns),
        "scorer": scorer,
        "bleu": "closest-length",
        "cider": "cider-d,idf-of-references",
        "tokenizer": "ptb-3.4.1-lower-no-punctuation",
        "end-token": "not-scored",
        "images": len(references.image_ids),
        "references": references.count,
        "references-per-image": "-".join(map(str, {per_image[0]: 0, per_image[-1]: 0})),
        "references-sha256": references.digest,
        "showtell": version("showtell"),
        **context,
    }
    return "|".join(f"{name}:{value}" for name, value in facts.items())
