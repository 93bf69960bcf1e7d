"""The page in a real browser: pictures decoded, nothing complained of, nothing wider than it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import BROWSER, look_at, open_page
from small_run import make_small_run

from showtell.report.run_page import write_report

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
def test_the_page_opens(tmp_path: Path, width: int, dark: bool) -> None:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH: the page is not looked at")
    page = write_report(make_small_run(tmp_path).folder)
    found, complaints = look_at(page, width, dark)
    assert len(found["widths"]) == 15
    assert min(found["widths"]) > 0
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["dark"] is dark
    assert set(found["fetched"]) <= {"data:"}
    red = int(re.findall(r"\d+", found["paper"])[0])
    assert (red < 64) is dark
    assert complaints == []


@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
def test_the_veils_lie_over_the_pictures(attentive: Path, tmp_path: Path, width: int) -> None:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH: the page is not looked at")
    found, complaints = look_at(write_report(attentive, tmp_path / "report.html"), width, False)
    assert found["overflow"] <= 0
    assert len(found["veils"]) >= 4
    assert all(veil == picture for veil, picture in found["veils"])
    assert complaints == []


def test_the_browser_would_complain_of_anything_fetched(tmp_path: Path) -> None:
    """What the test above relies on: a page that reaches out is heard of, and stopped."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH: the page is not looked at")
    page = write_report(make_small_run(tmp_path).folder)
    outside = '<img src="http://localhost:9/a.png" alt="">'
    page.write_text(page.read_text().replace("<main>", f"<main>{outside}", 1))
    _, complaints = open_page(page, tmp_path / "profile", dark=False)
    assert "Content Security Policy" in "".join(complaints)
