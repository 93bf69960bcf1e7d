"""The section on words: what stands beside what."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import SmallRun, make_small_run

from showtell.data.sources import table
from showtell.metrics.inputs import read_captions
from showtell.report.words import WordsSection, words_section
from showtell.text.vocabulary import Vocabulary
from showtell.types import CaptionData


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return make_small_run(tmp_path)


def section(run: SmallRun, data: CaptionData | None) -> WordsSection:
    captions = read_captions(run.folder / "captions-val.json")
    found = words_section(run.folder, "val", captions, data)
    assert found is not None
    return found


def data_of(run: SmallRun) -> CaptionData:
    return table(file=str(run.table), images=None, split_seed=0, skip_rejected=False)


def test_the_model_stands_beside_people(run: SmallRun) -> None:
    found = section(run, data_of(run))
    assert found.has_people
    assert found.lengths is not None
    figures = {name: (own, people) for name, own, people in found.figures}
    assert figures["different captions"] == ("9", "18")
    # The references of all pictures are formulas with a colour, of training pictures too.
    assert figures["share copied from training"] == ("77.8 %", "100.0 %")
    assert figures["share equal to a reference"] == ("77.8 %", "0.0 %")
    assert "share unfinished" not in figures


def test_what_the_evaluation_alone_knows_is_read_from_its_file(run: SmallRun) -> None:
    run.write("scores-val.json", run.read("scores-val.json") | {"captions/share unfinished": 0.25})
    Vocabulary(["a", "square"], min_count=1, counts=[2, 2]).save(run.folder / "vocabulary.json")
    figures = {name: (own, people) for name, own, people in section(run, data_of(run)).figures}
    assert figures["share unfinished"] == ("25.0 %", "")
    assert figures["share of the vocabulary"][0] == "100.0 %"


def test_without_its_data_set_the_model_stands_alone(run: SmallRun) -> None:
    found = section(run, None)
    assert (found.has_people, found.lengths) == (False, None)
    assert {people for _, _, people in found.figures} == {""}
    assert "share copied from training" not in {name for name, _, _ in found.figures}


def test_no_captions_no_section(run: SmallRun) -> None:
    assert words_section(run.folder, "val", {}, None) is None
