"""The page in a real browser: pictures decoded, nothing complained of, nothing wider than it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from small_run import make_small_run

from showtell.report.run_page import write_report

pytestmark = pytest.mark.slow

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Put before the page's own policy, which forbids every script after it.
PROBE = """<script>
addEventListener("load", () => parent.postMessage(JSON.stringify({
  veils: [...document.querySelectorAll(".view img")].map(
    v => [v, v.parentElement].map(e => JSON.stringify(e.getBoundingClientRect()))),
  widths: [...document.images].map(i => i.naturalWidth),
  width: innerWidth,
  overflow: document.documentElement.scrollWidth - innerWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  paper: getComputedStyle(document.body).backgroundColor,
  fetched: performance.getEntriesByType("resource").map(r => r.name.slice(0, 5)),
}), "*"));
</script>"""
# The browser makes no window narrower than 500 px; a frame is as narrow as a phone.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<script>addEventListener("message", event => { document.title = event.data; });</script>
<title></title><iframe src="report.html" width="{width}" height="800" frameborder="0"></iframe>"""


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


def look_at(page: Path, width: int, dark: bool) -> tuple[dict[str, Any], list[str]]:
    """What the probe finds on the page in a frame of that width, and what the console said."""
    page.write_text(page.read_text().replace("<head>", f"<head>{PROBE}", 1))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("{width}", str(width)))
    title, complaints = open_page(frame, page.with_name("profile"), dark)
    return json.loads(title), complaints


def open_page(page: Path, profile: Path, dark: bool) -> tuple[str, list[str]]:
    """The title of the page once it has loaded, and what the console said."""
    assert BROWSER is not None
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync dump-dom"
    options += " disable-background-networking disable-component-update enable-logging=stderr"
    command = [BROWSER, *(f"--{option}" for option in options.split())]
    command += [f"--user-data-dir={profile}", "--window-size=1400,900"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += ["--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return unescape(title[1]), complaints


def test_the_browser_would_complain_of_anything_fetched(tmp_path: Path) -> None:
    """What the test above relies on: a page that reaches out is heard of, and stopped."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH: the page is not looked at")
    page = write_report(make_small_run(tmp_path).folder)
    outside = '<img src="http://localhost:9/a.png" alt="">'
    page.write_text(page.read_text().replace("<main>", f"<main>{outside}", 1))
    _, complaints = open_page(page, tmp_path / "profile", dark=False)
    assert "Content Security Policy" in "".join(complaints)
