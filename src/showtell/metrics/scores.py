"""The front end to all metrics, for validation, evaluation, comparison and training.

It takes raw captions and references and tokenizes them with `showtell.text.tokenizer`, which equals
the COCO evaluation's tokenizer. BLEU, ROUGE-L, METEOR and SPICE are pycocoevalcap's own scorers;
CIDEr-D is `showtell.metrics.cider`, equal to pycocoevalcap's to 1e-9.
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
    """A metric's results: name -> corpus score, name -> score of each image, statistics [I, K]."""

    corpus: Mapping[str, float]
    each: Mapping[str, Sequence[float]]
    statistics: Array


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    ``scores`` maps those of BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE that were requested
    and could run to the corpus score: in 0..1, but CIDEr in 0..10. ``per_image`` maps the image ids
    of the references to the same names for single images; BLEU is smoothed there as in the COCO
    evaluation. ``skipped`` maps each metric that could not run to the remedy, ``notes`` say what a
    reader must know about the others. ``signature`` describes how the scores were computed.
    ``statistics`` has one row per image, from which corpus scores are computed;
    `showtell.metrics.intervals` resamples them.
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
        """A flat dictionary, as in ``scores-*.json``."""
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

    Work on the references is cached: another call with the same ones, as in validation after every
    epoch, costs only the captions.

    Args:
        captions: image id -> caption, or the rows of a COCO results file.
        references: image id -> its references, at least one.
        metrics: names out of BLEU, METEOR, ROUGE-L, CIDEr and SPICE.
        document_references: image id -> references for CIDEr's document frequencies; by default
            ``references``, as in the COCO evaluation. To score a set in parts consistently, pass
            those of the whole set with each part.
        context: further entries of the signature, such as the split or the beam size.

    Raises:
        ScoringError: ids or texts that cannot be scored; see `showtell.metrics.inputs`.
        UnknownMetricError: a name is not one of the five.
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
    """The metrics for the end of a training: SPICE only if it can run.

    `showtell evaluate` requests all five and reports what those that cannot run need.
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
    """The results of the metrics that can run, and the remedies for those that cannot."""
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
    """CIDEr's document frequencies over some images, and a digest of these."""

    def __init__(self, references: _Raw) -> None:
        sentences = [_sentences(each) for _, each in references]
        self.frequencies = DocumentFrequencies.of(map(_words, sentences))
        self.digest = _references_digest([i for i, _ in references], sentences)


class _WeighedReferences:
    """The references of some images, with all that metrics compute from references alone."""

    def __init__(self, references: _Raw, documents: _Documents | None) -> None:
        self.documents = documents
        self.image_ids = tuple(image_id for image_id, _ in references)
        self.sentences = [_sentences(each) for _, each in references]
        self.count = sum(map(len, self.sentences))

    @cached_property
    def bleu(self) -> list[Any]:
        """pycocoevalcap's precomputed n-gram counts of each image's references."""
        return [cook_refs(sentences) for sentences in self.sentences]

    @cached_property
    def cider(self) -> CiderD:
        """CIDEr-D with document frequencies of ``documents``, or else of these references."""
        tokens = map(_words, self.sentences)
        frequencies = self.documents.frequencies if self.documents else None
        return CiderD(dict(zip(self.image_ids, tokens, strict=True)), frequencies=frequencies)

    @cached_property
    def split_digest(self) -> str:
        """A truncated SHA-256 of the image ids alone: which images are scored."""
        return _digest(sorted(self.image_ids))

    @cached_property
    def digest(self) -> str:
        """A truncated SHA-256 of image ids and tokenized references."""
        return _references_digest(self.image_ids, self.sentences)

    @property
    def comparable_digest(self) -> str:
        """A digest of all references that must agree for CIDEr scores to be comparable."""
        return _digest([self.digest, self.documents.digest]) if self.documents else self.digest


def _sentences(raw: Sequence[str]) -> list[str]:
    """The words of each caption, joined by spaces."""
    return [" ".join(tokenize(caption)) for caption in raw]


def _words(sentences: Sequence[str]) -> list[list[str]]:
    # Split at any white space like pycocoevalcap: a token may contain a non-breaking space.
    return [sentence.split() for sentence in sentences]


def _references_digest(image_ids: Sequence[str], sentences: Sequence[Sequence[str]]) -> str:
    rows = zip(image_ids, sentences, strict=True)
    return _digest("\t".join([image_id, *each]) for image_id, each in sorted(rows))


def _digest(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:12]


# Two sets: the validation images and the split they are part of. They stay in memory for the life
# of the process, with all that was computed from them: the price of fast validation.
_weigh = lru_cache(maxsize=2)(_WeighedReferences)
_count = lru_cache(maxsize=1)(_Documents)  # a set scored in parts passes the same for each


class SampleScores:
    """Scores of single captions, any number per image, for rewards in training.

    CIDEr equals that of `score_captions` per image with all images as ``document_references``, and
    BLEU-4 equals its per-image BLEU-4. Vectors of references are computed on demand and not kept,
    because they are a hundred times larger than the words.

    Args:
        references: image id -> its raw references.
        end: a token appended to every reference, so that stopping is scored too; finished captions
            must then end with it. `score_captions` uses none.

    Raises:
        NotTextError: a reference is not text.
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
        """CIDEr-D, 0 to 10, of captions given as words joined by spaces."""
        references = {image_id: _words(self._sentences[image_id]) for image_id in set(image_ids)}
        return _cider_of(sentences, image_ids, CiderD(references, frequencies=self._frequencies))

    def bleu4(self, sentences: Sequence[str], image_ids: Sequence[str]) -> list[float]:
        """Smoothed BLEU-4, 0 to 1, of captions given as words joined by spaces."""
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
    """BLEU-1..4 of the corpus and of each caption, and pycocoevalcap's counts for each caption."""
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
    """``name:value`` pairs, joined by ``|``, that must agree for two results to be comparable."""
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
