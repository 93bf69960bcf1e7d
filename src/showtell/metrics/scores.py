"""The one front end to all scores: validation, evaluation, comparison and training use it.

Raw captions and references go in. Their words are those of `showtell.text.tokenizer`, equal to
the COCO evaluation's; BLEU, ROUGE-L, METEOR and SPICE are pycocoevalcap's own scorers, CIDEr-D is
`showtell.metrics.cider`, equal to pycocoevalcap's to 1e-9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any

from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from pycocoevalcap.rouge.rouge import Rouge

from showtell.metrics.cider import CiderD, DocumentFrequencies
from showtell.metrics.inputs import (
    ScoringError,
    UnknownMetricError,
    captions_of,
    check_captions,
    check_references,
)
from showtell.metrics.java import INSTALL_JAVA
from showtell.metrics.meteor import MeteorError, shared_meteor
from showtell.metrics.spice import SpiceError, spice, spice_obstacle
from showtell.metrics.statistics import (
    BLEU_ORDER,
    METRICS,
    SCORE_NAMES,
    Array,
    CaptionStatistics,
    bleu_statistics,
    mean_statistics,
)
from showtell.text.tokenizer import tokenize

DEFAULT_METRICS = METRICS[:4]  # SPICE needs a large download


@dataclass(frozen=True, slots=True)
class _Scored:
    """One metric's results: name -> corpus score, name -> score of each image, and [I, K]."""

    corpus: Mapping[str, float]
    each: Mapping[str, Sequence[float]]
    statistics: Array


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    ``scores`` maps BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE, as far as they were asked
    for and could run, to the score of the whole set: fractions, but CIDEr on its own scale of 0
    to 10. ``per_image`` has the same names for each image, under the id its references have; BLEU
    is smoothed there as the COCO evaluation does. ``skipped`` names each metric that could not
    run with the remedy, ``notes`` what a reader must know about those that did. ``signature``
    says how the numbers came about. ``statistics`` are what the corpus scores are computed from,
    one row for each image; `showtell.metrics.intervals` resamples them.
    """

    scores: dict[str, float]
    per_image: dict[str, dict[str, float]]
    skipped: dict[str, str]
    notes: tuple[str, ...]
    signature: str
    images: int
    references: int
    statistics: CaptionStatistics = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The flat form of ``scores-*.json``."""
        counts = {"images": self.images, "references": self.references}
        skipped = {f"skipped/{name}": remedy for name, remedy in self.skipped.items()}
        notes = {"notes": "; ".join(self.notes)} if self.notes else {}
        return {**self.scores, **counts, "signature": self.signature, **skipped, **notes}


def score_captions(
    captions: Mapping[str, str] | Sequence[Mapping[str, Any]],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    document_references: Mapping[str, Sequence[str]] | None = None,
    context: Mapping[str, object] | None = None,
) -> CaptionScores:
    """Score one raw caption per image against its raw references.

    The references are tokenized and weighed once: calling this again with the same ones, as
    validation does after every epoch, costs only the captions.

    Args:
        captions: image id -> caption, or the rows of a COCO results file.
        references: image id -> its references, as many as there are.
        metrics: names out of BLEU, METEOR, ROUGE-L, CIDEr and SPICE.
        document_references: image id -> references of the images whose words CIDEr's document
            frequencies count; those of ``references`` where none are given, which is what the
            COCO evaluation does. The same here for every part of a set makes the parts' CIDEr
            that of the whole.
        context: what else the signature should say, such as the split or the beam size.

    Raises:
        ScoringError: ids or texts that cannot be scored; see `showtell.metrics.inputs`.
        UnknownMetricError: a name that is none of the five.
    """
    if not isinstance(captions, Mapping):
        captions = captions_of(captions, source="the captions")
    _check_metrics(metrics)
    check_captions(captions, references)
    named = {str(image_id): image_id for image_id in references}
    weighed = _weigh(
        tuple((str(i), tuple(references[named[str(i)]])) for i in captions),
        None if document_references is None else _documents_of(document_references),
    )
    hypotheses = [" ".join(tokenize(caption)) for caption in captions.values()]
    results, skipped = _score([name for name in METRICS if name in metrics], hypotheses, weighed)
    each = {name: values for scored in results.values() for name, values in scored.each.items()}
    signature = _signature(results, weighed, context or {})
    return CaptionScores(
        scores={n: float(x) for scored in results.values() for n, x in scored.corpus.items()},
        per_image={
            named[image_id]: {name: float(values[row]) for name, values in each.items()}
            for row, image_id in enumerate(weighed.image_ids)
        },
        skipped=skipped,
        notes=tuple(_notes(results, weighed)),
        signature=signature,
        images=len(captions),
        references=weighed.count,
        statistics=CaptionStatistics(
            image_ids=weighed.image_ids,
            arrays={metric: scored.statistics for metric, scored in results.items()},
            references_sha256=weighed.comparable_digest,
            signature=signature,
        ),
    )


def final_metrics() -> Sequence[str]:
    """What the end of a training scores: SPICE only where it can run.

    `showtell evaluate` asks for all five, and tells what those need that could not run.
    """
    return DEFAULT_METRICS if spice_obstacle() else METRICS


def _check_metrics(metrics: Sequence[str]) -> None:
    if isinstance(metrics, str) or not metrics or set(metrics) - set(METRICS):
        raise UnknownMetricError(
            f"cannot score {metrics!r}: give a list of names out of {', '.join(METRICS)}"
        )


def _documents_of(references: Mapping[str, Sequence[str]]) -> _Documents:
    check_references(references)
    if not references:
        raise ScoringError("document_references are empty: give the images to count words in")
    return _count(tuple((str(i), tuple(sentences)) for i, sentences in references.items()))


def _score(
    metrics: Sequence[str], hypotheses: Sequence[str], references: _WeighedReferences
) -> tuple[dict[str, _Scored], dict[str, str]]:
    """The results of the metrics that can run, and the remedies of those that cannot."""
    results: dict[str, _Scored] = {}
    skipped: dict[str, str] = {}
    for metric in metrics:
        try:
            results[metric] = _SCORERS[metric](hypotheses, references)
        except (MeteorError, SpiceError) as error:
            skipped[metric] = str(error)
    return results, skipped


def _notes(results: Mapping[str, _Scored], references: _WeighedReferences) -> Iterator[str]:
    if "CIDEr" in results and references.cider.frequencies.images == 1:
        yield (
            "CIDEr is 0 by definition where words are counted in a single image: give more as "
            "document_references"
        )


_Raw = tuple[tuple[str, tuple[str, ...]], ...]  # image id and its references, ...


class _Documents:
    """The images whose words CIDEr counts."""

    def __init__(self, references: _Raw) -> None:
        sentences = [_sentences(each) for _, each in references]
        self.frequencies = DocumentFrequencies.of(map(_words, sentences))
        self.digest = _references_digest([i for i, _ in references], sentences)


class _WeighedReferences:
    """The references of some images, with everything a metric can compute from them alone."""

    def __init__(self, references: _Raw, documents: _Documents | None) -> None:
        self.documents = documents
        self.image_ids = tuple(image_id for image_id, _ in references)
        self.sentences = [_sentences(each) for _, each in references]
        self.count = sum(map(len, self.sentences))

    @cached_property
    def bleu(self) -> list[Any]:
        """What pycocoevalcap's BLEU needs to know of each image's references."""
        return [cook_refs(sentences) for sentences in self.sentences]

    @cached_property
    def cider(self) -> CiderD:
        """CIDEr-D whose document frequencies come from the documents, or these references."""
        tokens = map(_words, self.sentences)
        frequencies = self.documents.frequencies if self.documents else None
        return CiderD(dict(zip(self.image_ids, tokens, strict=True)), frequencies=frequencies)

    @cached_property
    def split_digest(self) -> str:
        """The start of the SHA-256 of the ids: which images are scored, whatever their words."""
        return _digest(sorted(self.image_ids))

    @cached_property
    def digest(self) -> str:
        """The start of the SHA-256 of ids and words."""
        return _references_digest(self.image_ids, self.sentences)

    @property
    def comparable_digest(self) -> str:
        """Of all that must agree before two CIDErs may be compared."""
        return _digest([self.digest, self.documents.digest]) if self.documents else self.digest


def _sentences(raw: Sequence[str]) -> list[str]:
    """The words of each caption, a blank between two."""
    return [" ".join(tokenize(caption)) for caption in raw]


def _words(sentences: Sequence[str]) -> list[list[str]]:
    # Like pycocoevalcap, split at any white space: a token may hold a non-breaking space.
    return [sentence.split() for sentence in sentences]


def _references_digest(image_ids: Sequence[str], sentences: Sequence[Sequence[str]]) -> str:
    rows = zip(image_ids, sentences, strict=True)
    return _digest("\t".join([image_id, *each]) for image_id, each in sorted(rows))


def _digest(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:12]


# Two sets: those of validation and of the split it is a part of. They stay in memory for the
# life of the process, with all that was computed from them: the price of cheap validations.
_weigh = lru_cache(maxsize=2)(_WeighedReferences)
_count = lru_cache(maxsize=1)(_Documents)  # a study scored in parts counts the same in each


class SampleScores:
    """Scores of single captions against the references of one of many images: rewards of training.

    CIDEr is what `score_captions` gives each image with all the images as ``document_references``,
    BLEU-4 the same as there; here an image may have any number of captions, and only references
    that are asked for are weighed, and forgotten: weighed, they are a hundred times larger.

    Args:
        references: image id -> its raw references.
        end: a token put behind every reference, so that stopping is scored too. A caption that
            was finished must then carry it itself. `score_captions` knows none.

    Raises:
        NotTextError: a reference is no text.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], *, end: str | None = None) -> None:
        check_references(references)
        behind = "" if end is None else f" {end}"
        self._sentences = {
            image_id: [sentence + behind for sentence in _sentences(raw)]
            for image_id, raw in references.items()
        }
        self._frequencies = DocumentFrequencies.of(map(_words, self._sentences.values()))

    def cider(self, sentences: Sequence[str], image_ids: Sequence[str]) -> list[float]:
        """CIDEr-D, 0 to 10, of sentences, each a caption's words with blanks between them."""
        references = {image_id: _words(self._sentences[image_id]) for image_id in set(image_ids)}
        return _cider_of(sentences, image_ids, CiderD(references, frequencies=self._frequencies))

    def bleu4(self, sentences: Sequence[str], image_ids: Sequence[str]) -> list[float]:
        """Smoothed BLEU-4, 0 to 1, of the same."""
        cooked = {image_id: cook_refs(self._sentences[image_id]) for image_id in set(image_ids)}
        _, each, _ = _bleu_of(sentences, [cooked[image_id] for image_id in image_ids])
        return list(each[BLEU_ORDER - 1])


def _bleu(hypotheses: Sequence[str], references: _WeighedReferences) -> _Scored:
    corpus, each, compared = _bleu_of(hypotheses, references.bleu)
    names = SCORE_NAMES[:BLEU_ORDER]
    return _Scored(
        dict(zip(names, corpus, strict=True)),
        dict(zip(names, each, strict=True)),
        bleu_statistics(compared),
    )


def _bleu_of(hypotheses: Sequence[str], references: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
    """BLEU-1..4 of all, and of each caption beside its cooked references; and the comparisons."""
    scorer = BleuScorer(n=BLEU_ORDER)
    scorer.crefs = list(references)
    scorer.ctest = list(map(cook_test, hypotheses, references))
    corpus, each = scorer.compute_score(option="closest", verbose=0)
    return corpus, each, scorer.ctest


def _meteor(hypotheses: Sequence[str], references: _WeighedReferences) -> _Scored:
    meteor = shared_meteor()
    if meteor is None:
        raise MeteorError(f"METEOR needs a Java runtime: {INSTALL_JAVA}")
    result = meteor.score(hypotheses, references.sentences)
    return _Scored({"METEOR": result.corpus}, {"METEOR": result.each}, result.statistics)


def _rouge(hypotheses: Sequence[str], references: _WeighedReferences) -> _Scored:
    rouge = Rouge()
    pairs = zip(hypotheses, references.sentences, strict=True)
    return _mean("ROUGE-L", [rouge.calc_score([caption], others) for caption, others in pairs])


def _cider(hypotheses: Sequence[str], references: _WeighedReferences) -> _Scored:
    return _mean("CIDEr", _cider_of(hypotheses, references.image_ids, references.cider))


def _cider_of(sentences: Sequence[str], image_ids: Sequence[str], cider: CiderD) -> list[float]:
    return list(map(cider.score, _words(sentences), image_ids))


def _spice(hypotheses: Sequence[str], references: _WeighedReferences) -> _Scored:
    if obstacle := spice_obstacle():
        raise SpiceError(obstacle)
    return _mean("SPICE", spice(hypotheses, references.sentences))


def _mean(name: str, each: Sequence[float]) -> _Scored:
    return _Scored({name: sum(each) / len(each)}, {name: each}, mean_statistics(each))


_SCORERS = {"BLEU": _bleu, "METEOR": _meteor, "ROUGE-L": _rouge, "CIDEr": _cider, "SPICE": _spice}


def _signature(
    results: Mapping[str, _Scored], references: _WeighedReferences, context: Mapping[str, object]
) -> str:
    """``name:value`` pairs that must agree before two results may be compared."""
    per_image = [len(sentences) for sentences in references.sentences]
    documents = references.documents
    idf = f"idf-of-documents-{documents.digest}" if documents else "idf-of-references"
    facts: dict[str, object] = {
        "metrics": ",".join(results),
        "scorers": f"pycocoevalcap-{version('pycocoevalcap')}",
        "bleu": "closest-length",
        "cider": f"cider-d,{idf}",
        "tokenizer": "ptb-3.4.1-lower-no-punctuation",
        "end-token": "not-scored",
        "images": len(references.image_ids),
        "references": references.count,
        "references-per-image": f"{min(per_image)}-{max(per_image)}",
        "references-sha256": references.digest,
        "split-sha256": references.split_digest,
        "showtell": version("showtell"),
        **context,
    }
    return "|".join(f"{name}:{value}" for name, value in facts.items())
