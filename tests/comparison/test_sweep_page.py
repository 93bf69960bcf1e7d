"""The page about a sweep, from made-up run folders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import BROWSER, look_at
from html_reading import Page
from made_up_runs import made_up_run
from PIL import Image

from showtell import runs
from showtell.comparison.settings import command_of
from showtell.comparison.sweep_page import ranking_metric, write_sweep_report
from showtell.comparison.trainings import collect
from showtell.config import compose
from showtell.errors import UserError

HOSTILE = '<script>alert("x")</script> & <img src=http://example.org/a.png onerror=alert(1)>'
IMAGES = 4


def scores(bleu: float, cider: float) -> dict[str, Sequence[object]]:
    """Statistics of captions with these corpus scores, the same for each image."""
    return {"CIDEr": [cider] * IMAGES, "ROUGE-L": [bleu] * IMAGES}


def curves(run: Path, *bleu: float) -> None:
    rows = ["epoch,step,val/loss,val/BLEU-4,val/CIDEr"]
    rows += [f"{epoch},{epoch},1.0,{score},{2 * score}" for epoch, score in enumerate(bleu)]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")


def captions(run: Path, written: Mapping[str, str]) -> None:
    runs.write_json(
        run / "captions-val.json", [{"image_id": i, "caption": c} for i, c in written.items()]
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two models, two rates, two seeds: eight finished runs, and one of each other kind."""
    folder = tmp_path / "sweep"
    for model, rate, seed in product(("lstm_glove", "merge_glove"), (0.001, 0.002), (1, 2)):
        level = 0.2 + 0.1 * (model == "merge_glove") + 0.02 * (rate == 0.002) + 0.005 * seed
        overrides = [f"model={model}", f"optim.lr={rate}"]
        run = made_up_run(folder, *overrides, seed=seed, scores=scores(level, 2 * level))
        curves(run, level / 2, level)
    for status in ("failed", "running"):
        run = made_up_run(folder, "optim.lr=9", scores=scores(0.9, 9), status=status)
        curves(run, 0.1)
    return folder


def read(sweep: Path, links: Sequence[str] = ()) -> Page:
    page = Page(write_sweep_report(sweep))
    page.check_self_contained(links)
    return page


def test_the_page_tells_what_was_swept_what_failed_and_what_was_best(sweep: Path) -> None:
    words = read(sweep).words
    assert "model × optim.lr on flickr8k" in words  # noqa: RUF001
    assert "4 configurations of 8 runs, scored on 4 validation pictures" in words
    assert "1 failed 1 running 8 finished" in words
    assert "run_08 failed" in words
    assert "run_09 is running, or was killed" in words
    assert words.index("run_08 failed") < words.index("Configurations")
    first = words.index("1 model=merge_glove optim.lr=0.002")
    assert first < words.index("2 model=merge_glove optim.lr=0.001")
    # Of seeds 1 and 2 the mean of CIDEr is 2 (0.3 + 0.02 + 0.0075).
    assert "65.5 ±0.7" in words
    assert "of them seed 2 scored best, in run_07" in words
    assert "The best of 4 configurations in 8 runs is optimistic" in words
    assert "±" in words[words.index("spread of seeds") :]


def test_the_command_trains_the_best_again(sweep: Path) -> None:
    page = read(sweep)
    (command,) = re.findall(r"python train\.py [^\n]*?seed=2", page.words)
    composed = compose(shlex.split(command)[2:])
    saved = runs.read_config(sweep / "run_07")
    for group in ("data", "encoder", "text", "model", "decoding", "optim", "trainer", "seed"):
        assert composed[group] == saved[group], group


def test_values_that_hydra_would_misread_are_quoted() -> None:
    config = compose(["model=merge_glove"])
    config["data"]["root"] = "/photo's of, a=b {c}/1e5"
    config["text"]["vectors"] = "12"
    composed = compose(shlex.split(command_of(config))[2:])
    assert (composed["data"], composed["text"]) == (config["data"], config["text"])


def test_effects_have_a_chart_for_each_choice_and_metric(sweep: Path) -> None:
    charts = [svg for svg in read(sweep).all("svg") if svg["class"] == "chart effect"]
    labels = [chart["aria-label"] for chart in charts]
    assert [label.partition(":")[0] for label in labels] == ["CIDEr by model", "CIDEr by optim.lr"]
    assert labels[0] == "CIDEr by model: merge_glove 63.5 · 4 runs, lstm_glove 43.5 · 4 runs"


def test_all_curves_lie_over_each_other_the_best_last_and_thick(sweep: Path) -> None:
    page = read(sweep)
    tones = [group["class"] for tag, group in page.elements if tag == "g" and "class" in group]
    per_chart = ["unfinished"] * 2 + ["value-1"] * 3 + ["value-2"] * 4 + ["value-1 best"]
    assert sorted(tones) == sorted(per_chart * 2)
    assert tones[len(per_chart) - 1] == "value-1 best"


def test_names_from_elsewhere_are_text(sweep: Path) -> None:
    jobs = [
        {"number": 0, "overrides": [f"name={HOSTILE}"], "status": "failed", "cause": HOSTILE},
        {"number": 1, "overrides": ["x"], "status": HOSTILE, "run": HOSTILE, "log": HOSTILE},
    ]
    runs.write_json(sweep / "sweep.json", {"format": 1, "command": [HOSTILE], "jobs": jobs})
    config = runs.read_config(sweep / "run_07")
    config["model"][HOSTILE] = HOSTILE
    (sweep / "run_07" / "config.yaml").write_text(yaml.safe_dump(config))
    captions(sweep / "run_06", {"a.jpg": HOSTILE})
    words = read(sweep).words
    assert f"failed: {HOSTILE}" in words
    assert f"model.{HOSTILE}" in words


def test_the_page_of_the_best_run_is_linked_if_it_is_there(sweep: Path) -> None:
    (sweep / "run_07").rename(sweep / "run 7 #?")
    (sweep / "run 7 #?" / "report.html").write_text("")
    read(sweep, links=["run%207%20%23%3F/report.html"])
    elsewhere = sweep.parent / "pages" / "sweep.html"
    page = Page(write_sweep_report(sweep, elsewhere))
    page.check_self_contained(["../sweep/run%207%20%23%3F/report.html"])


def test_a_run_that_was_not_evaluated_is_taken_by_its_curves_and_told(sweep: Path) -> None:
    (sweep / "run_07" / "statistics-val.safetensors").unlink()
    (sweep / "run_07" / "scores-val.json").unlink()
    words = read(sweep).words
    assert "4 configurations of 8 runs" in words
    assert "not evaluated: run_07; the scores are those of the best validation" in words
    # The others are still tested, by the seed that was evaluated.
    assert re.search(r"2 model=merge_glove optim\.lr=0\.001 2 .{0,40}, p \.", words)


def test_a_damaged_run_is_named_and_the_others_shown(sweep: Path) -> None:
    (sweep / "run_00" / "config.yaml").write_text("a: [")
    (sweep / "run_01" / "statistics-val.safetensors").write_text("x")
    words = read(sweep).words
    assert "4 configurations" not in words
    assert "3 configurations of 6 runs" in words
    assert "2 unreadable" in words
    assert "run_00 cannot be used" in words
    assert "statistics-val.safetensors cannot be read" in words


def test_one_run_alone_has_a_page(tmp_path: Path) -> None:
    made_up_run(tmp_path / "sweep", scores=scores(0.2, 0.4))
    words = read(tmp_path / "sweep").words
    assert "1 configuration of 1 run" in words
    assert "Nothing was swept but the seed" in words
    assert "is optimistic" not in words
    assert "Nothing has been logged yet" in words


def test_seeds_alone_have_a_spread_and_no_effects(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        made_up_run(tmp_path / "sweep", seed=seed, scores=scores(0.1 * seed, 0.4))
    words = read(tmp_path / "sweep").words
    assert "seeds of model=lstm_glove on flickr8k" in words
    assert "20.0 ±10.0" in words
    assert "the spread in the table is what chance alone does" in words
    assert "The best of 1 configuration in 3 runs is optimistic" in words


def test_a_sweep_without_any_result_names_its_jobs(tmp_path: Path) -> None:
    job = {"overrides": ["model=x"], "status": "failed", "cause": "exit status 1", "log": "0.log"}
    runs.write_json(tmp_path / "sweep.json", {"format": 1, "jobs": [job]})
    (tmp_path / "0.log").write_text("ValueError: <b>no</b>\n")
    words = read(tmp_path).words
    assert "A sweep without results 1 failed 0 finished" in words
    assert "model=x failed: exit status 1" in words
    assert "ValueError: <b>no</b>" in words


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a run nor a sweep"):
        write_sweep_report(tmp_path)


def test_the_best_is_chosen_by_what_chose_the_weights(sweep: Path) -> None:
    trainings = collect([sweep], "val").trainings
    # BLEU-4 is monitored, and these statistics have none.
    assert ranking_metric(trainings) == "ROUGE-L"
    for training in trainings:
        training.config["callbacks"]["monitor"] = "val/CIDEr"  # type: ignore[index]
    assert ranking_metric(trainings) == "CIDEr"


@pytest.fixture
def pictures(sweep: Path) -> Path:
    """The sweep with a data set whose pictures are there, and captions of three runs."""
    data = sweep.parent / "data"
    data.mkdir()
    rows = ["image,caption,split"]
    for n in range(8):
        Image.new("RGB", (64, 48), (30 * n, 99, 9)).save(data / f"{n}.png")
        rows.append(f"{n}.png,a square number {n},val")
    Image.new("RGB", (64, 48)).save(data / "t.png")
    rows.append("t.png,a square,train")
    (data / "captions.csv").write_text("\n".join(rows) + "\n")
    for run in sweep.iterdir():
        config = runs.read_config(run)
        node = {"_target_": "showtell.data.sources.table", "file": str(data / "captions.csv")}
        config["data"] = node | {"images": None, "split_seed": 0, "skip_rejected": False}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        captions(run, {f"{n}.png": f"a square of {run.name}" for n in range(8)})
    return sweep


def test_captions_of_the_best_configurations_stand_side_by_side(pictures: Path) -> None:
    page = read(pictures)
    images = page.all("img")
    assert len(images) == 6
    assert len({image["src"] for image in images}) == 6
    # The best seed of each of the three best configurations.
    for run, times in {"run_07": 6, "run_05": 6, "run_03": 6, "run_01": 0, "run_06": 0}.items():
        assert page.words.count(f"a square of {run}") == times, run


def test_runs_that_all_score_the_same_have_a_page(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for rate, seed in product((0.001, 0.002), (1, 2)):
        made_up_run(sweep, f"optim.lr={rate}", scores=scores(0.2, 0.123), seed=seed)
    page = read(sweep)
    assert "2 configurations of 4 runs" in page.words
    assert {circle["cx"] for circle in page.all("circle")} == {"125.6"}  # 12.3 between 12 and 13


def test_two_hundred_runs_are_folded_not_dropped(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    generator = np.random.default_rng(0)
    for number in range(200):
        rate, dropout = generator.uniform(1e-4, 1e-2), generator.uniform(0, 0.5)
        overrides = [f"optim.lr={rate:.5f}", f"model.image_dropout={dropout:.4f}"]
        overrides.append(f"model.hidden_size={generator.choice([128, 256, 512])}")
        made_up_run(sweep, *overrides, scores=scores(rate, rate), seed=number)
    page = read(sweep)
    assert "200 configurations of 200 runs" in page.words
    assert "180 more, down to the worst" in page.words
    assert len(page.all("circle")) == 3 * 200
    # Configurations, choices, what they do not explain, and the scores of the best run.
    assert len([row for row in page.all("th") if row.get("scope") == "row"]) == 200 + 3 + 2 + 1
    assert page.words.count(" to 0.0") >= 4  # the rates in ranges


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400], ids=["laptop", "phone"])
def test_the_page_opens_in_a_browser(pictures: Path, width: int, dark: bool) -> None:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH: the page is not looked at")
    found, complaints = look_at(write_sweep_report(pictures), width, dark)
    assert len(found["widths"]) == 6
    assert min(found["widths"]) > 0
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["dark"] is dark
    assert set(found["fetched"]) <= {"data:"}
    assert complaints == []
