"""Chromium, if it is there: what a page is like once it is opened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

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
