"""Where a run looked, from a tiny trained model with attention to the page."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Smoke
from html_reading import Page
from PIL import Image

from showtell.caption import CaptionAttention, load_run
from showtell.config import build
from showtell.errors import UserError
from showtell.report.attention_maps import DARKNESS, attention_overlay, describe, veil
from showtell.report.gallery import Picture, cards
from showtell.report.run_page import write_report
from showtell.runs import BEST_WEIGHTS
from showtell.vision.images import ImageError, Preprocessing


def shown(folder: Path) -> list[Path]:
    """The validation pictures of a run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return [image.path for image in build("data", config["data"]).split("val")]


def test_attention_has_a_map_for_each_word_of_the_caption(attentive: Path) -> None:
    run, paths = load_run(attentive), shown(attentive)[:2]
    attentions = run.attend(paths)
    assert [" ".join(attention.words) for attention in attentions] == run.caption(paths)
    for attention in attentions:
        assert attention.weights.shape == (len(attention.words), 2, 2)
        np.testing.assert_allclose(attention.weights.sum(axis=(1, 2)), 1, atol=1e-5)


def test_attention_can_be_over_a_caption_of_ones_own(attentive: Path) -> None:
    run, (path, *_) = load_run(attentive), shown(attentive)
    (attention,) = run.attend([path], ["A red ball, seen by nobody."])
    assert attention.words == ("a", "red", "ball", "seen", "by", "nobody")
    (shorter,) = run.attend([path], ["a red ball"])
    np.testing.assert_allclose(shorter.weights, attention.weights[:3], atol=1e-6)
    (nothing,) = run.attend([path], [""])
    assert nothing.weights.shape == (0, 2, 2)


def test_a_run_without_attention_says_so(smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LSTMDecoder looks at the picture as a whole; train a"):
        load_run(smoke.folder).attend([tmp_path / "any.png"])


def test_what_is_no_picture_cannot_be_looked_at(attentive: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such picture"):
        load_run(attentive).attend([tmp_path / "none.png"], ["a dog"])


def test_the_page_shows_each_word_with_its_veil(attentive: Path, tmp_path: Path) -> None:
    page = Page(write_report(attentive, tmp_path / "report.html"))
    page.check_self_contained()
    assert "Where it looked" in page.words
    captions = json.loads((attentive / "captions-val.json").read_text())
    words = sum(len(row["caption"].split()) for row in captions)
    images = page.all("img")
    veils = [image for image in images if image["alt"].startswith("most at the ")]
    assert len(veils) == words
    pictures = {image["src"] for image in images if image not in veils}
    assert len(pictures) == len(captions)


def test_without_its_weights_the_page_says_why_it_shows_nothing(
    attentive: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(attentive, tmp_path / "run")
    (folder / BEST_WEIGHTS).unlink()
    page = Page(write_report(folder))
    assert f"Not to be shown: {folder / BEST_WEIGHTS} is missing" in page.words


def test_a_model_without_attention_has_no_such_part(smoke: Smoke, tmp_path: Path) -> None:
    assert "Where it looked" not in Page(write_report(smoke.folder, tmp_path / "r.html")).words


def test_the_veil_lies_over_what_the_network_saw(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (400, 200)).save(path)
    (card,) = cards([Picture(path, "a dog", (), {})])
    attention = CaptionAttention(("a", "dog"), np.full((2, 3, 3), 1 / 9, dtype=np.float32))
    flat = (0.5, 0.5, 0.5)
    crop = attention_overlay(Preprocessing(64, "crop", 0.8, "bicubic", flat, flat), card, attention)
    # A square of 160 px in the middle of 400 x 200.
    assert (crop.left, crop.top, crop.width, crop.height) == pytest.approx((30, 10, 40, 80))
    assert crop.ratio == 2
    whole = attention_overlay(Preprocessing(64, "whole", 1, "bicubic", flat, flat), card, attention)
    assert (whole.left, whole.top, whole.width, whole.height) == (0, 0, 100, 100)
    assert [view.word for view in whole.views] == ["a", "dog"]


def alpha(uri: str) -> list[list[int]]:
    content = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    levels: list[list[int]] = np.asarray(Image.open(io.BytesIO(content)))[..., 3].tolist()
    return levels


def test_the_veil_is_clear_where_the_model_looks_most() -> None:
    shares = np.full((3, 3), 0.05, dtype=np.float32)
    shares[0, 2] = 0.6
    dark = round(255 * DARKNESS * (1 - 0.05 / 0.6))
    expected = [[dark, dark, 0], [dark, dark, dark], [dark, dark, dark]]
    assert alpha(veil(shares)) == expected
    assert len(veil(shares)) < 200


def test_even_attention_is_dim_and_shows_no_noise() -> None:
    shares = np.full((9, 9), 1 / 81, dtype=np.float32)
    shares[4, 4] *= 1.1
    levels = np.array(alpha(veil(shares)))
    assert levels.min() > 100
    assert levels.max() - levels.min() < 10


@pytest.mark.parametrize(
    ("row", "column", "place"),
    [(0, 0, "top left"), (4, 4, "middle centre"), (8, 5, "bottom centre"), (3, 8, "middle right")],
)
def test_attention_is_said_in_words(row: int, column: int, place: str) -> None:
    shares = np.full((9, 9), 0.5 / 80, dtype=np.float32)
    shares[row, column] = 0.5
    assert describe(shares) == f"most at the {place}, 55 %"


def test_a_grid_of_one_region_is_described() -> None:
    assert describe(np.ones((1, 1), dtype=np.float32)).endswith("100 %")
