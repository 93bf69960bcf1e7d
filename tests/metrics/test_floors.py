from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from showtell.metrics import score_captions
from showtell.metrics.floors import (
    consensus_captions,
    constant_caption,
    human_ceiling,
    shuffled,
    shuffled_captions,
)
from showtell.metrics.inputs import ScoringError

TRAINING = {
    "1": ["a dog runs on grass", "the dog runs"],
    "2": ["a dog runs on sand", "dogs run far"],
    "3": ["a cat sits on a chair", "the cat sits there"],
}


def flickr8k(shared: Path, split: str) -> dict[str, list[str]]:
    folder = shared / "flickr8k" / "Flickr8k_text"
    captions: dict[str, list[str]] = {}
    for line in (folder / "Flickr8k.token.txt").read_text("utf-8").splitlines():
        name, caption = line.split("\t", 1)
        captions.setdefault(name.split("#")[0], []).append(caption)
    return {name: captions[name] for name in (folder / split).read_text("utf-8").split()}


def bleu4_as_constant(caption: str, images: Mapping[str, Sequence[str]]) -> float:
    return score_captions(dict.fromkeys(images, caption), images, ["BLEU"]).scores["BLEU-4"]


def test_consensus_ranks_by_the_bleu_of_the_constant_caption() -> None:
    ranked = consensus_captions(TRAINING, count=10)
    assert ranked == sorted(ranked, key=lambda c: -bleu4_as_constant(c, TRAINING))
    assert ranked[0] in ("a dog runs on grass", "a dog runs on sand")


def test_the_order_of_the_training_set_does_not_matter() -> None:
    backwards = dict(reversed(TRAINING.items()))
    assert consensus_captions(backwards, count=3) == consensus_captions(TRAINING, count=3)


def test_the_constant_caption_is_the_best_candidate() -> None:
    references = {"x": ["a cat sits on a chair"], "y": ["a cat sits on a mat"]}
    floor = constant_caption(TRAINING, references, ["BLEU", "CIDEr"])
    assert "'a cat sits on a chair'" in floor.rule
    assert floor.scores["BLEU-4"] == bleu4_as_constant("a cat sits on a chair", references)


def test_each_metric_counts_its_best_constant() -> None:
    floor = constant_caption(TRAINING, TRAINING, ["BLEU", "ROUGE-L", "CIDEr"])
    candidates = consensus_captions(TRAINING, count=10)
    for name in ("BLEU-4", "CIDEr"):
        assert floor.scores[name] == max(
            score_captions(dict.fromkeys(TRAINING, c), TRAINING, ["BLEU", "CIDEr"]).scores[name]
            for c in candidates
        )
    assert floor.scores["ROUGE-L"] > 0


def test_captions_too_short_for_bleu_are_refused() -> None:
    with pytest.raises(ScoringError, match="four words"):
        constant_caption({"1": ["a dog"]}, {"x": ["a dog"]}, ["BLEU"])


def test_shuffling_gives_every_image_another_caption() -> None:
    captions = {str(i): f"caption {i}" for i in range(50)}
    given = shuffled(captions, seed=1)
    assert list(given) == list(captions)
    assert sorted(given.values()) == sorted(captions.values())
    assert all(given[i] != captions[i] for i in captions)
    assert given == shuffled(captions, seed=1) != shuffled(captions, seed=2)


def test_one_image_cannot_be_shuffled() -> None:
    with pytest.raises(ScoringError, match="two or more"):
        shuffled({"a": "x"}, seed=0)


def test_people_who_agree_reach_the_top() -> None:
    references = {str(i): [f"a person number {i} waves"] * 3 for i in range(4)}
    ceiling = human_ceiling(references, ["BLEU", "ROUGE-L"])
    assert ceiling.scores["BLEU-4"] == pytest.approx(1.0, abs=1e-6)
    assert ceiling.rule == "each of 3 references against the others, 4 images"


def test_the_ceiling_is_the_mean_over_rounds() -> None:
    references = {
        "a": ["a b c d e", "a b c d f"],
        "b": ["g h i j", "k l m n", "g h i k"],
        "c": ["x"],
    }
    first = {"a": "a b c d e", "b": "g h i j"}
    second = {"a": "a b c d f", "b": "k l m n"}
    rounds = [
        score_captions(first, {"a": ["a b c d f"], "b": ["k l m n", "g h i k"]}, ["BLEU"]),
        score_captions(second, {"a": ["a b c d e"], "b": ["g h i j", "g h i k"]}, ["BLEU"]),
    ]
    expected = {n: sum(r.scores[n] for r in rounds) / 2 for n in rounds[0].scores}
    assert human_ceiling(references, ["BLEU"]).scores == pytest.approx(expected)


def test_one_reference_each_has_no_ceiling() -> None:
    with pytest.raises(ScoringError, match="more than one reference"):
        human_ceiling({"a": ["x"]}, ["BLEU"])


@pytest.mark.slow
def test_the_known_floors_and_ceiling_of_flickr8k(shared: Path) -> None:
    """The development split stands close to the official test split: 8.6, 2.0 and 21.4 BLEU-4."""
    references = flickr8k(shared, "Flickr_8k.devImages.txt")
    training = flickr8k(shared, "Flickr_8k.trainImages.txt")
    first = {image_id: each[0] for image_id, each in references.items()}
    constant = constant_caption(training, references, ["BLEU", "CIDEr"])
    others = shuffled_captions(first, references, ["BLEU", "CIDEr"], seed=0)
    people = human_ceiling(references, ["BLEU", "CIDEr"])
    assert constant.scores["BLEU-4"] == pytest.approx(0.09, abs=0.005)
    assert others.scores["BLEU-4"] == pytest.approx(0.024, abs=0.005)
    assert people.scores["BLEU-4"] == pytest.approx(0.2175, abs=0.005)
    assert people.scores["CIDEr"] == pytest.approx(0.832, abs=0.01)
