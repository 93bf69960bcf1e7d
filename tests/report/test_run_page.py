from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from html_reading import Page
from small_run import HOSTILE, SmallRun, make_small_run

from showtell.config import compose
from showtell.errors import UserError
from showtell.report.run_page import write_report


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return make_small_run(tmp_path)


def test_a_finished_run_shows_everything(run: SmallRun) -> None:
    written = write_report(run.folder)
    page = Page(written)
    page.check_self_contained()
    assert written == run.folder / "report.html"
    assert len(page.all("img")) == 15  # three best, all nine drawn, three worst
    assert len(page.all("svg")) == 4  # loss, BLEU, CIDEr, lengths
    for text in (
        "LSTMDecoder on captions",
        "trained on 9 pictures with 18 captions, from seed 0. Its best epoch is 2.",
        "finished",
        "BLEU-1 BLEU-4 CIDEr this run 63.1 20.0 55.3",
        "skipped METEOR METEOR needs Java",
        "The weights kept are those of epoch 2, where val/BLEU-4 was highest, at 20.0.",
        "share copied from training 77.8 % 100.0 %",
        "commit 0123abc",
    ):
        assert text in page.words


def test_alarms_stand_above_the_scores(run: SmallRun) -> None:
    assert "Alarms" not in Page(write_report(run.folder)).words
    alarm = {"name": "x", "finding": HOSTILE, "cause": "a cause", "remedy": "a remedy"}
    run.write("run.json", run.read("run.json") | {"alarms": {"training": [alarm], "val": [alarm]}})
    page = Page(write_report(run.folder))
    page.check_self_contained()
    above, _, _ = page.words.partition(" Scores ")
    assert f"On the validation pictures, {HOSTILE}. Likely cause: a cause." in above
    assert above.count("Remedy: a remedy.") == 2


def test_alarms_that_are_none_are_an_error(run: SmallRun) -> None:
    run.write("run.json", run.read("run.json") | {"alarms": {"val": [{"kind": 1}]}})
    with pytest.raises(UserError, match=r"the alarms in run\.json are none"):
        write_report(run.folder)


def test_what_the_data_says_is_shown_and_does_nothing(run: SmallRun) -> None:
    page = Page(write_report(run.folder))
    # A network and a run of that name, a caption, and a reference below each picture.
    assert page.words.count("<script>alert") >= 12
    page.check_self_contained()


def test_best_pictures_come_first_and_the_worst_last(run: SmallRun) -> None:
    words = Page(write_report(run.folder)).words
    best, drawn, worst = (
        part.partition(f" {end} ")[0]
        for start, end in (
            ("Best", "Drawn at random"),
            ("Drawn at random", "Worst"),
            ("Worst", "Words"),
        )
        for part in [words.partition(f" {start} ")[2]]
    )
    assert "nothing of the kind CIDEr" not in best
    assert "nothing of the kind CIDEr 0.0" in worst
    assert len(ciders(best)) == len(ciders(worst)) == 3
    assert ciders(best) == sorted(ciders(best), reverse=True)
    assert ciders(worst) == sorted(ciders(worst))
    # Drawn from all pictures, the best and the worst among them.
    assert {*ciders(best), *ciders(worst)} <= {*ciders(drawn)}
    assert len(ciders(drawn)) == 9


def ciders(words: str) -> list[float]:
    """The CIDEr of each card."""
    return [float(part.split()[0]) for part in words.split(" CIDEr ")[1:]]


def test_the_same_run_gives_the_same_page(run: SmallRun) -> None:
    first = write_report(run.folder).read_bytes()
    other = write_report(run.folder, run.folder / "other.html")
    assert other.read_bytes() == first


@pytest.mark.parametrize("status", ["running", "prepared", "failed"])
def test_a_run_that_has_hardly_begun_has_a_page(run: SmallRun, status: str) -> None:
    for name in ("metrics.csv", "scores-val.json", "captions-val.json"):
        (run.folder / name).unlink()
    run.write("run.json", run.read("run.json") | {"status": status})
    page = Page(write_report(run.folder))
    assert status in page.words
    assert "Nothing has been logged yet." in page.words
    assert "No split has been scored yet" in page.words
    assert "No captions have been written yet." in page.words
    expected = "ended with an error" if status == "failed" else "had not finished"
    assert expected in page.words


def test_without_its_data_set_the_page_has_no_pictures_and_says_so(run: SmallRun) -> None:
    shutil.rmtree(run.table.parent)
    page = Page(write_report(run.folder))
    assert page.all("img") == []
    assert f"No pictures, because the data set is not at hand: {run.table}" in page.words
    assert "share different 100.0 %" in page.words


def test_another_data_set_under_the_same_name_is_doubted(run: SmallRun) -> None:
    with run.table.open("a") as file:
        file.write("val-red.png,one more caption,val\n")
    page = Page(write_report(run.folder))
    assert len(page.all("img")) == 15
    assert "its text files are not those the run was trained on" in page.words


def test_a_data_set_without_the_captioned_pictures_is_none(run: SmallRun) -> None:
    run.write("captions-val.json", [{"image_id": "elsewhere.jpg", "caption": "a dog"}])
    page = Page(write_report(run.folder))
    assert page.all("img") == []
    assert "it holds none of the captioned pictures" in page.words


@pytest.mark.parametrize(
    "target", ["os.system", "showtell.data.splits.draw_splits", "showtell.runs.write_json"]
)
def test_nothing_but_a_data_set_is_built(run: SmallRun, target: str) -> None:
    run.write("config.yaml", f"data:\n  _target_: {target}\n")
    page = Page(write_report(run.folder))
    assert page.all("img") == []
    assert "No pictures, because the data set is not at hand" in page.words


def test_a_page_draws_no_pictures_where_there_were_none(run: SmallRun, tmp_path: Path) -> None:
    place = tmp_path / "scenes"
    node = {**compose(["data=scenes"])["data"], "root": str(place)}
    run.write("config.yaml", yaml.safe_dump({"data": node}))
    assert (
        f"the data set is not at hand: {place} is not there" in Page(write_report(run.folder)).words
    )
    assert not place.exists()


def test_the_test_split_is_shown_only_where_there_is_no_other(run: SmallRun) -> None:
    (run.folder / "captions-val.json").rename(run.folder / "captions-test.json")
    assert "From the test split" in Page(write_report(run.folder)).words


def test_no_run_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [b"),
        ("config.yaml", "!!python/object/apply:os.getcwd []"),
        ("config.yaml", "- a"),
        ("captions-val.json", "{}"),
        ("captions-val.json", HOSTILE),
    ],
)
def test_a_damaged_file_is_named(run: SmallRun, name: str, content: str) -> None:
    run.write(name, content)
    with pytest.raises(UserError, match=name):
        write_report(run.folder)
