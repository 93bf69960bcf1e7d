from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from showtell.metrics import score_captions
from showtell.metrics.inputs import (
    DuplicateCaptionError,
    MissingCaptionError,
    MissingReferencesError,
    NotTextError,
    ScoringError,
    UnknownMetricError,
)
from showtell.metrics.scores import SampleScores, final_metrics
from showtell.text.tokenizer import tokenize

WITHOUT_JAVA = ["BLEU", "ROUGE-L", "CIDEr"]
# Published with the captions themselves by the COCO evaluation code.
PUBLISHED = {
    "BLEU-1": 0.5794,
    "BLEU-2": 0.4044,
    "BLEU-3": 0.2785,
    "BLEU-4": 0.1908,
    "ROUGE-L": 0.3963,
    "CIDEr": 0.5998,
}
REFERENCES = {
    "1.jpg": ["A dog runs on the grass.", "A brown dog is running.", "The dog runs outside."],
    "2.jpg": ["Two people ride bikes down a road.", "Cyclists on a road."],
    "3.jpg": ["A child's red ball floats in a pool."],
}
CAPTIONS = {
    "1.jpg": "a dog runs outside",
    "2.jpg": "two people on a road",
    "3.jpg": "a ball in a pool",
}


def coco(shared: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    data = json.loads((shared / "reference" / "coco_fakecap.json").read_text("utf-8"))
    return {image_id: texts[0] for image_id, texts in data["res"].items()}, data["gts"]


def pycocoevalcap_scores(
    captions: dict[str, str], references: dict[str, list[str]]
) -> dict[str, tuple[float, list[float]]]:
    """pycocoevalcap's own path from words to scores."""
    words = {i: [" ".join(tokenize(text)) for text in texts] for i, texts in references.items()}
    captioned = {i: [" ".join(tokenize(text))] for i, text in captions.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_each = Bleu(4).compute_score(words, captioned)
        rouge = Rouge().compute_score(words, captioned)
        cider = Cider().compute_score(words, captioned)
    named = {f"BLEU-{n + 1}": (bleu[n], bleu_each[n]) for n in range(4)}
    return {**named, "ROUGE-L": rouge, "CIDEr": cider}


def assert_equal_to_pycocoevalcap(
    captions: dict[str, str], references: dict[str, list[str]]
) -> None:
    ours = score_captions(captions, references, WITHOUT_JAVA)
    for name, (corpus, each) in pycocoevalcap_scores(captions, references).items():
        assert ours.scores[name] == pytest.approx(corpus, abs=1e-9), name
        values = [ours.per_image[image_id][name] for image_id in captions]
        assert values == pytest.approx(list(each), abs=1e-9), name


def test_the_published_figures_of_the_coco_evaluation(shared: Path) -> None:
    scores = score_captions(*coco(shared), WITHOUT_JAVA)
    assert scores.scores == pytest.approx(PUBLISHED, abs=5e-4)
    assert (scores.images, scores.references) == (1000, 5005)
    assert scores.skipped == {}


def test_every_image_gets_the_score_pycocoevalcap_gives(shared: Path) -> None:
    assert_equal_to_pycocoevalcap(*coco(shared))


def test_uneven_numbers_of_references() -> None:
    assert_equal_to_pycocoevalcap(CAPTIONS, REFERENCES)


@pytest.mark.parametrize(
    "hostile",
    ["", " ", ".", "...!", "|||", "a ||| b", "<unk>", "<unk> <unk> dog", "dog " * 3000, "x", "😀"],
)
def test_hostile_captions_score_as_pycocoevalcap_scores_their_words(hostile: str) -> None:
    assert_equal_to_pycocoevalcap({**CAPTIONS, "2.jpg": hostile}, REFERENCES)
    assert_equal_to_pycocoevalcap(CAPTIONS, {**REFERENCES, "2.jpg": [hostile, "a dog"]})


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_no_line_separator_shifts_the_captions_behind_it(separator: str) -> None:
    broken = {**CAPTIONS, "1.jpg": f"a dog{separator}runs outside{separator}"}
    references = {**REFERENCES, "1.jpg": [f"A{separator}dog runs", *REFERENCES["1.jpg"]]}
    spaced = {**REFERENCES, "1.jpg": ["A dog runs", *REFERENCES["1.jpg"]]}
    ours = score_captions(broken, references, WITHOUT_JAVA)
    assert ours.per_image == score_captions(CAPTIONS, spaced, WITHOUT_JAVA).per_image


word = st.sampled_from(
    ["a", "the", "dog", "dogs", "'s", "red", "ball", "runs", ",", ".", "on", "in", "grass", "|||"]
)
sentence = st.lists(word, max_size=12).map(" ".join)


@given(
    st.lists(
        st.tuples(sentence, st.lists(sentence, min_size=1, max_size=4)), min_size=1, max_size=5
    )
)
@settings(max_examples=60, deadline=None)
def test_any_captions_score_as_pycocoevalcap_scores_them(
    rows: list[tuple[str, list[str]]],
) -> None:
    captions = {str(i): caption for i, (caption, _) in enumerate(rows)}
    references = {str(i): texts for i, (_, texts) in enumerate(rows)}
    # Without a single word pycocoevalcap's CIDEr stops with an error.
    assume(any(tokenize(text) for texts in references.values() for text in texts))
    assert_equal_to_pycocoevalcap(captions, references)


def test_the_order_of_the_images_changes_nothing() -> None:
    forward = score_captions(CAPTIONS, REFERENCES, WITHOUT_JAVA)
    backward = score_captions(dict(reversed(CAPTIONS.items())), REFERENCES, WITHOUT_JAVA)
    assert backward.scores == pytest.approx(forward.scores, abs=1e-12)
    assert backward.per_image == forward.per_image
    assert backward.signature == forward.signature


def test_scoring_again_with_the_same_references_gives_the_same() -> None:
    first = score_captions(CAPTIONS, REFERENCES, WITHOUT_JAVA)
    score_captions({"1.jpg": "x"}, {"1.jpg": ["y"]}, WITHOUT_JAVA)
    assert score_captions(CAPTIONS, REFERENCES, WITHOUT_JAVA) == first


def test_repeating_a_reference_is_perfect() -> None:
    captions = {image_id: texts[0] for image_id, texts in REFERENCES.items()}
    scores = score_captions(captions, REFERENCES, WITHOUT_JAVA).scores
    assert scores["BLEU-4"] == pytest.approx(1.0, abs=1e-6)
    assert scores["ROUGE-L"] == pytest.approx(1.0)


def test_the_smoothed_bleu_of_one_image_by_hand() -> None:
    scores = score_captions({"a": "the red dog"}, {"a": ["the red cat", "a dog"]}, ["BLEU"])
    # 3 of 3 words, 1 of 2 pairs, 0 of 1 triple; no shorter than the closest reference.
    per_image = scores.per_image["a"]
    assert per_image["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    assert per_image["BLEU-2"] == pytest.approx((1 / 2) ** 0.5, abs=1e-6)
    assert per_image["BLEU-3"] == pytest.approx((1 / 2 * 1e-15) ** (1 / 3), rel=1e-6)


def test_only_the_metrics_asked_for_are_there() -> None:
    scores = score_captions(CAPTIONS, REFERENCES, ["CIDEr"])
    assert set(scores.scores) == {"CIDEr"} == set(scores.per_image["1.jpg"])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score_captions(CAPTIONS, REFERENCES, WITHOUT_JAVA)
    assert capfd.readouterr() == ("", "")


def test_the_flat_form_holds_scores_counts_and_signature() -> None:
    flat = score_captions(
        CAPTIONS, REFERENCES, ["BLEU", "CIDEr"], context={"split": "val"}
    ).to_json()
    assert flat["images"] == 3 and flat["references"] == 6
    assert {"BLEU-1", "BLEU-4", "CIDEr"} < set(flat)
    assert "|split:val" in flat["signature"] and "pycocoevalcap-" in flat["signature"]
    assert json.loads(json.dumps(flat)) == flat


def test_the_signature_tells_other_references_apart() -> None:
    others = {**REFERENCES, "3.jpg": ["A ball."]}
    first = score_captions(CAPTIONS, REFERENCES, ["BLEU"])
    assert first.signature != score_captions(CAPTIONS, others, ["BLEU"]).signature


def test_cider_of_a_single_image_is_zero_and_said_so() -> None:
    scores = score_captions({"a": "a dog"}, {"a": ["a dog"]}, ["CIDEr"])
    assert scores.scores["CIDEr"] == 0
    assert "by definition" in scores.notes[0]
    assert scores.to_json()["notes"] == scores.notes[0]


def test_parts_of_a_set_score_as_the_whole_where_the_documents_are_the_same() -> None:
    whole = score_captions(CAPTIONS, REFERENCES, ["CIDEr"])
    assert whole.scores["CIDEr"] > 0
    for image_id, caption in CAPTIONS.items():
        part = score_captions(
            {image_id: caption},
            {image_id: REFERENCES[image_id]},
            ["CIDEr"],
            document_references=REFERENCES,
        )
        assert part.per_image[image_id] == whole.per_image[image_id]
        assert part.notes == ()


def test_several_captions_of_an_image_score_as_each_would_alone() -> None:
    candidates = {"1.jpg": ["a dog runs outside", "a brown dog"], "3.jpg": ["a ball", "red"]}
    rated = {f"{i}#{n}": text for i, texts in candidates.items() for n, text in enumerate(texts)}
    references = {i: REFERENCES[i.rpartition("#")[0]] for i in rated}
    scores = score_captions(rated, references, ["CIDEr"], document_references=REFERENCES)
    for name, caption in rated.items():
        image_id = name.rpartition("#")[0]
        alone = score_captions({**CAPTIONS, image_id: caption}, REFERENCES, ["CIDEr"])
        assert scores.per_image[name] == alone.per_image[image_id]


def test_rewards_of_training_are_the_scores_of_each_image() -> None:
    """Any number of captions of an image, and of some images only; the end is not counted."""
    rewards = SampleScores(REFERENCES)
    rated = dict(CAPTIONS) | {next(iter(CAPTIONS)): "a 1 1/2 \u00bd (or two) dogs cannot run ."}
    expected = score_captions(
        rated, REFERENCES, ["BLEU", "CIDEr"], document_references=REFERENCES
    ).per_image
    for image_id, caption in rated.items():
        sentences, image_ids = [" ".join(tokenize(caption)), "a dog"], [image_id] * 2
        cider, bleu4 = expected[image_id]["CIDEr"], expected[image_id]["BLEU-4"]
        assert rewards.cider(sentences, image_ids)[0] == pytest.approx(cider, abs=1e-9)
        assert rewards.bleu4(sentences, image_ids)[0] == pytest.approx(bleu4, abs=1e-9)


def test_rewards_with_an_end_are_those_of_references_that_end_so() -> None:
    ended = {i: [f"{sentence} stop" for sentence in each] for i, each in REFERENCES.items()}
    image_ids = list(REFERENCES)
    sentences = [" ".join(tokenize(CAPTIONS[i])) + " stop" for i in image_ids]
    found, expected = SampleScores(REFERENCES, end="stop"), SampleScores(ended)
    assert found.cider(sentences, image_ids) == expected.cider(sentences, image_ids)
    assert found.bleu4(sentences, image_ids) == expected.bleu4(sentences, image_ids)


def test_cider_with_documents_by_hand() -> None:
    # Of the two documents only this image's holds "red", "dog" and "red dog": each weighs log 2.
    # Both caption and reference are (1, 1) in words, (1) in pairs, and have no more: cosines of
    # 1 and 1 of four orders, times 10. "dog" alone: 1 / sqrt 2 in words, and one word shorter.
    documents = {"a": ["red dog"], "b": ["cat"]}
    captions, references = {"x": "red dog", "y": "dog"}, {"x": ["red dog"], "y": ["red dog"]}
    scores = score_captions(captions, references, ["CIDEr"], document_references=documents)
    assert scores.per_image["x"]["CIDEr"] == pytest.approx(10 * 2 / 4)
    shorter = math.exp(-1 / (2 * 6**2))
    assert scores.per_image["y"]["CIDEr"] == pytest.approx(10 * shorter / math.sqrt(2) / 4)


def test_other_documents_are_another_measure() -> None:
    others = {**REFERENCES, "4.jpg": ["A cat."]}
    usual = score_captions(CAPTIONS, REFERENCES, ["CIDEr"])
    other = score_captions(CAPTIONS, REFERENCES, ["CIDEr"], document_references=others)
    assert "idf-of-documents-" in other.signature and "idf-of-references" in usual.signature
    assert not other.statistics.is_comparable(usual.statistics)


def test_documents_of_a_single_image_leave_cider_at_zero_and_are_told() -> None:
    one = {"1.jpg": REFERENCES["1.jpg"]}
    scores = score_captions(CAPTIONS, REFERENCES, ["CIDEr"], document_references=one)
    assert "by definition" in scores.notes[0]


@pytest.mark.parametrize("documents", [{}, {"1.jpg": "a dog"}, {True: ["a dog"]}])
def test_documents_that_cannot_be_counted_are_refused(documents: Any) -> None:
    with pytest.raises(ScoringError):
        score_captions(CAPTIONS, REFERENCES, ["CIDEr"], document_references=documents)


def test_without_java_the_rest_is_scored_and_the_remedy_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("showtell.metrics.meteor.find_java", lambda: None)
    monkeypatch.setattr("showtell.metrics.spice.find_java", lambda: None)
    scores = score_captions(CAPTIONS, REFERENCES, ["BLEU", "METEOR", "SPICE"])
    assert set(scores.scores) == {f"BLEU-{n}" for n in range(1, 5)}
    assert set(scores.skipped) == {"METEOR", "SPICE"}
    assert all("showtell[java]" in remedy for remedy in scores.skipped.values())
    assert {"skipped/METEOR", "skipped/SPICE"} <= scores.to_json().keys()


@pytest.mark.parametrize(("obstacle", "has_spice"), [("no Java", False), (None, True)])
def test_a_training_ends_with_spice_where_it_can_run(
    obstacle: str | None, has_spice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showtell.metrics.scores.spice_obstacle", lambda: obstacle)
    assert ("SPICE" in final_metrics()) == has_spice
    assert {"BLEU", "METEOR", "ROUGE-L", "CIDEr"} <= set(final_metrics())


def test_the_rows_of_a_results_file_are_captions() -> None:
    rows = [{"image_id": image_id, "caption": text} for image_id, text in CAPTIONS.items()]
    assert score_captions(rows, REFERENCES, ["BLEU"]) == score_captions(
        CAPTIONS, REFERENCES, ["BLEU"]
    )


def test_the_numbers_coco_gives_its_images_are_ids() -> None:
    captions = {7: "a dog", 8: "a cat"}
    references = {7: ["a dog"], 8: ["the cat"]}
    scores = score_captions(captions, references, ["BLEU"])  # type: ignore[arg-type]
    assert list(scores.per_image) == [7, 8]


@pytest.mark.parametrize("row_id", [7, "7", np.int64(7)])
@pytest.mark.parametrize("reference_id", [7, "7", np.int64(7)])
def test_the_ids_of_a_results_file_may_be_numbers_or_text(
    row_id: object, reference_id: Any
) -> None:
    rows = [{"image_id": row_id, "caption": "a dog"}]
    scores = score_captions(rows, {reference_id: ["a dog"]}, ["ROUGE-L"])
    assert scores.per_image[reference_id] == {"ROUGE-L": 1.0}
    assert scores.statistics.image_ids == ("7",)


@pytest.mark.parametrize(
    ("captions", "references", "error", "words"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, MissingCaptionError, "1 image (b)"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, MissingReferencesError, "1 image (b)"),
        ({"a": "x"}, {"a": []}, MissingReferencesError, "1 image (a)"),
        ({"a": "x"}, {"a": "xy"}, NotTextError, "references of a"),
        ({"a": "x"}, {"a": [None]}, NotTextError, "reference of a"),
        ({"a": "x"}, {"a": None}, NotTextError, "references of a"),
        ({"a": None}, {"a": ["x"]}, NotTextError, "caption of a"),
        ({"a": ["x"]}, {"a": ["x"]}, NotTextError, "caption of a"),
        ({None: "x"}, {None: ["x"]}, NotTextError, "None"),
        ({1: "x", "1": "y"}, {1: ["x"], "1": ["y"]}, DuplicateCaptionError, "1 image (1)"),
        ({}, {}, ScoringError, "no captions"),
        ([{"image_id": 1, "caption": "x"}] * 2, {"1": ["x"]}, DuplicateCaptionError, "(1)"),
        ({True: "x"}, {True: ["x"]}, NotTextError, "True"),
        ([{"image_id": True, "caption": "x"}], {"True": ["x"]}, NotTextError, "True"),
        ([{"image_id": None, "caption": "x"}], {"None": ["x"]}, NotTextError, "None"),
        ([{"image": 1}], {"1": ["x"]}, ScoringError, "COCO"),
    ],
)
def test_what_cannot_be_scored_is_a_clear_error(
    captions: object, references: object, error: type[ScoringError], words: str
) -> None:
    with pytest.raises(error) as caught:
        score_captions(captions, references, ["BLEU"])  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_many_missing_images_are_counted_and_three_named() -> None:
    references = {f"{n}.jpg": ["x"] for n in range(10)}
    with pytest.raises(MissingCaptionError, match=r"9 images \(1.jpg, 2.jpg, 3.jpg, \.\.\.\)"):
        score_captions({"0.jpg": "x"}, references, ["BLEU"])


@pytest.mark.parametrize("metrics", [["bleu"], ["BLEU", "BERTScore"], [], "BLEU"])
def test_an_unknown_metric_is_refused(metrics: object) -> None:
    with pytest.raises(UnknownMetricError, match="ROUGE-L"):
        score_captions(CAPTIONS, REFERENCES, metrics)  # type: ignore[arg-type]


def test_scoring_needs_no_torch() -> None:
    program = "import sys, showtell.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
