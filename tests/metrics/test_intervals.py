from __future__ import annotations

import random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from showtell.metrics import score_captions
from showtell.metrics.inputs import ScoringError
from showtell.metrics.intervals import bootstrap, compare
from showtell.metrics.scores import CaptionScores
from showtell.metrics.statistics import bleu, meteor

WORDS = ["a", "the", "dog", "cat", "red", "ball", "on", "in", "runs", "grass"]
METRICS = ["BLEU", "ROUGE-L", "CIDEr"]


def sentences(count: int, seed: int) -> list[str]:
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=pick.randint(4, 9))) for _ in range(count)]


REFERENCES = {
    str(i): list(pair)
    for i, pair in enumerate(zip(sentences(80, 1), sentences(80, 2), strict=True))
}


def scored(captions: list[str]) -> CaptionScores:
    return score_captions(dict(zip(REFERENCES, captions, strict=True)), REFERENCES, METRICS)


def half_right(seed: int) -> list[str]:
    """Every other caption is a reference."""
    wrong = sentences(80, seed)
    return [texts[0] if i % 2 else wrong[i] for i, texts in enumerate(REFERENCES.values())]


def test_bleu_of_a_resampled_set_is_what_pycocoevalcap_gives_it() -> None:
    captions = sentences(80, seed=3)
    counts = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80))
    scorer = BleuScorer(n=4)
    for count, caption, references in zip(counts, captions, REFERENCES.values(), strict=True):
        for _ in range(count):
            scorer += (caption, references)
    expected, _ = scorer.compute_score(option="closest")
    totals = counts[None, :] @ scored(captions).statistics["BLEU"]
    ours = [float(values[0]) for values in bleu(totals).values()]
    assert ours == pytest.approx(expected, abs=1e-12)


def test_the_statistics_of_the_whole_set_give_its_scores() -> None:
    scores = scored(half_right(seed=4))
    totals = np.sum(scores.statistics["BLEU"], axis=0, keepdims=True)
    for name, values in bleu(totals).items():
        assert values[0] == pytest.approx(scores.scores[name], abs=1e-12)


def test_meteor_of_a_recorded_pair_by_java() -> None:
    # Java's SCORE and EVAL answers for three captions and for the three as a set.
    lines = [
        "6 7 3 3 3 3 2 2 0 0 0 0 0 0 0 0 0 0 0 0 3 5 5",
        "4 6 1 3 1 1 0 0 0 0 0 0 0 0 0 0 1 1 1 1 2 3 3",
        "2 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    ]
    statistics = np.array([line.split() for line in lines], dtype=np.float64)
    each = meteor(statistics)["METEOR"]
    assert each == pytest.approx([0.3464597264911982, 0.20618550143582923, 0.0], abs=1e-15)
    together = meteor(statistics.sum(axis=0, keepdims=True))["METEOR"]
    assert together == pytest.approx([0.24362763080561983], abs=1e-15)


def test_an_interval_holds_its_score_and_has_the_width_theory_gives() -> None:
    scores = scored(half_right(seed=5))
    intervals = bootstrap(scores, samples=2000, seed=0)
    assert set(intervals) == set(scores.scores)
    for name, interval in intervals.items():
        assert interval.low < scores.scores[name] < interval.high
    each = [score["ROUGE-L"] for score in scores.per_image.values()]
    normal_width = 2 * 1.96 * np.std(each) / np.sqrt(len(each))
    width = intervals["ROUGE-L"].high - intervals["ROUGE-L"].low
    assert width == pytest.approx(normal_width, rel=0.1)


def test_equal_seeds_give_equal_intervals() -> None:
    scores = scored(half_right(seed=5))
    assert bootstrap(scores, seed=3) == bootstrap(scores, seed=3) != bootstrap(scores, seed=4)


def test_captions_that_differ_little_differ_by_chance() -> None:
    comparison = compare(scored(half_right(seed=6)), scored(half_right(seed=7)))
    assert comparison["CIDEr"].p_value > 0.05
    assert comparison["CIDEr"].low < 0 < comparison["CIDEr"].high


def test_better_captions_are_better_beyond_chance() -> None:
    right = [texts[0] for texts in REFERENCES.values()]
    comparison = compare(scored(half_right(seed=6)), scored(right), samples=500)
    for each in comparison.values():
        assert each.difference > 0 and each.low > 0
        assert each.p_value == pytest.approx(2 / 501)


def test_a_run_does_not_differ_from_itself() -> None:
    scores = scored(half_right(seed=6))
    for each in compare(scores, scores).values():
        assert (each.difference, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def test_runs_on_different_references_are_not_compared() -> None:
    others = {**REFERENCES, "0": ["something else"]}
    captions = dict(zip(REFERENCES, half_right(seed=6), strict=True))
    with pytest.raises(ScoringError, match="one split"):
        compare(scored(list(captions.values())), score_captions(captions, others, METRICS))
