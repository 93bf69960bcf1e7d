from __future__ import annotations

import random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from showtell.metrics import score_captions
from showtell.metrics.inputs import ScoringError
from showtell.metrics.intervals import bootstrap, compare, compare_each
from showtell.metrics.scores import CaptionScores
from showtell.metrics.statistics import (
    Array,
    CaptionStatistics,
    bleu,
    mean_statistics,
    meteor,
    meteor_statistics,
)

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


def captioners(*captions: list[str]) -> list[list[CaptionStatistics]]:
    return [[scored(each).statistics] for each in captions]


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
    totals = counts[None, :] @ scored(captions).statistics.arrays["BLEU"]
    ours = [float(values[0]) for values in bleu(totals).values()]
    assert ours == pytest.approx(expected, abs=1e-12)


def test_the_statistics_of_the_whole_set_give_its_scores() -> None:
    scores = scored(half_right(seed=4))
    assert scores.statistics.scores == pytest.approx(scores.scores, abs=1e-12)


def test_meteor_of_a_recorded_pair_by_java() -> None:
    # Java's SCORE and EVAL answers for three captions and for the three as a set.
    lines = [
        "6 7 3 3 3 3 2 2 0 0 0 0 0 0 0 0 0 0 0 0 3 5 5",
        "4 6 1 3 1 1 0 0 0 0 0 0 0 0 0 0 1 1 1 1 2 3 3",
        "2 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    ]
    statistics = meteor_statistics(np.array([line.split() for line in lines], dtype=np.float64))
    each = meteor(statistics)["METEOR"]
    assert each == pytest.approx([0.3464597264911982, 0.20618550143582923, 0.0], abs=1e-15)
    together = meteor(statistics.sum(axis=0, keepdims=True))["METEOR"]
    assert together == pytest.approx([0.24362763080561983], abs=1e-15)


def test_meteor_of_a_caption_that_is_its_reference_by_java() -> None:
    # Java's SCORE and EVAL answers: `a dog runs` is its reference, the two others are not theirs.
    lines = [
        "3 3 1 1 2 2 1 1 0 0 0 0 0 0 0 0 0 0 0 0 1 3 3",
        "4 5 2 1 2 2 0 0 0 0 0 0 0 0 0 0 0 1 1 0 1 3 3",
        "5 6 2 2 3 3 1 1 0 0 0 0 0 0 0 0 0 0 0 0 2 4 4",
    ]
    statistics = meteor_statistics(np.array([line.split() for line in lines], dtype=np.float64))
    each = meteor(statistics)["METEOR"]
    assert each == pytest.approx([1.0, 0.324278996723174, 0.3525237358098343], abs=1e-15)
    together = meteor(statistics.sum(axis=0, keepdims=True))["METEOR"]
    assert together == pytest.approx([0.39711961122451755], abs=1e-15)


def test_an_interval_holds_its_score_and_has_the_width_theory_gives() -> None:
    scores = scored(half_right(seed=5))
    intervals = bootstrap(scores.statistics, samples=2000, seed=0)
    assert set(intervals) == set(scores.scores)
    for name, interval in intervals.items():
        assert interval.low < scores.scores[name] < interval.high
    each = [score["ROUGE-L"] for score in scores.per_image.values()]
    normal_width = 2 * 1.96 * np.std(each) / np.sqrt(len(each))
    width = intervals["ROUGE-L"].high - intervals["ROUGE-L"].low
    assert width == pytest.approx(normal_width, rel=0.1)


def test_equal_seeds_give_equal_intervals() -> None:
    scores = scored(half_right(seed=5))
    assert (
        bootstrap(scores.statistics, seed=3)
        == bootstrap(scores.statistics, seed=3)
        != bootstrap(scores.statistics, seed=4)
    )


def test_captions_that_differ_little_differ_by_chance() -> None:
    comparison = compare(*captioners(half_right(seed=6), half_right(seed=7)))
    assert comparison["CIDEr"].p_value > 0.05
    assert comparison["CIDEr"].low < 0 < comparison["CIDEr"].high


def test_better_captions_are_better_beyond_chance() -> None:
    right = [texts[0] for texts in REFERENCES.values()]
    comparison = compare(*captioners(half_right(seed=6), right), samples=500)
    for each in comparison.values():
        assert each.difference > 0 and each.low > 0
        assert each.p_value == pytest.approx(2 / 501)


def test_a_run_does_not_differ_from_itself() -> None:
    for each in compare(*captioners(half_right(seed=6), half_right(seed=6))).values():
        assert (each.difference, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def test_runs_on_different_references_are_not_compared() -> None:
    others = {**REFERENCES, "0": ["something else"]}
    captions = dict(zip(REFERENCES, half_right(seed=6), strict=True))
    elsewhere = score_captions(captions, others, METRICS).statistics
    with pytest.raises(ScoringError, match="one split"):
        compare([scored(list(captions.values())).statistics], [elsewhere])


def test_images_are_paired_by_their_ids_not_by_their_order() -> None:
    captions = dict(zip(REFERENCES, half_right(seed=6), strict=True))
    turned = dict(reversed(captions.items()))
    first, second = (score_captions(c, REFERENCES, METRICS).statistics for c in (captions, turned))
    assert first.image_ids != second.image_ids
    for each in compare([first], [second]).values():
        assert (each.low, each.high) == pytest.approx((0, 0), abs=1e-12)


def made_up(scores: Array) -> CaptionStatistics:
    """A training whose ROUGE-L of each image is given."""
    image_ids = tuple(map(str, range(len(scores))))
    return CaptionStatistics(image_ids, {"ROUGE-L": mean_statistics(scores)}, "same", "made:up")


def test_several_captioners_are_compared_with_the_first_as_each_alone_would_be() -> None:
    first, second, third = (scored(sentences(80, seed)).statistics for seed in (3, 4, 5))
    groups = [[second], [third, second]]
    each = [compare([first], group, samples=50) for group in groups]
    assert compare_each([first], groups, samples=50) == each


def test_the_difference_is_that_of_the_means_over_trainings() -> None:
    # Corpus scores 0.2 and 0.4 against 0.5, 0.6 and 0.7, each the same for both images.
    first = [made_up(np.array([s, s])) for s in (0.2, 0.4)]
    second = [made_up(np.array([s, s])) for s in (0.5, 0.6, 0.7)]
    result = compare(first, second, samples=20_000)["ROUGE-L"]
    assert result.difference == pytest.approx(0.3)
    # Images bring no chance here, seeds do: s^2 = (0.02 + 0.02) / 3, s sqrt(1/2 + 1/3) = 0.10541,
    # and 95 % of Student's t with 3 degrees of freedom lie within 3.18245: 0.3 -+ 0.33546.
    assert (result.low, result.high) == pytest.approx((-0.03546, 0.63546), abs=0.02)
    # P(|t_3| > 0.3 / 0.10541 = 2.846) = 0.0653
    assert result.p_value == pytest.approx(0.0653, abs=0.006)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (3, 3)])
def test_equal_captioners_are_called_different_no_more_often_than_promised(n: int, m: int) -> None:
    random = np.random.default_rng(0)

    def null_p_value(seed_spread: float) -> float:
        """Two captioners of the same quality: images are harder or easier for all of them."""
        images = random.normal(size=100)
        trainings = [
            made_up(images + seed_spread * random.normal() + 0.5 * random.normal(size=100))
            for _ in range(n + m)
        ]
        return compare(trainings[:n], trainings[n:], samples=99)["ROUGE-L"].p_value

    # One training says nothing of its seed: (1, 1) promises about images alone.
    for seed_spread in (0.0,) if n + m == 2 else (0.0, 0.5):
        p_values = np.array([null_p_value(seed_spread) for _ in range(200)])
        for level in (0.05, 0.2, 0.5):
            # Three standard errors of a share of 200.
            margin = 3 * np.sqrt(level * (1 - level) / 200)
            assert np.mean(p_values <= level) <= level + margin
        if n + m == 2 or seed_spread == 0.5:
            assert np.mean(p_values <= 0.5) == pytest.approx(0.5, abs=0.11), "needlessly unsure"
