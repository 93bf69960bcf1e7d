"""Every benchmark runs, at tiny sizes; what it measures then means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from page import ORDER

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_benchmark_has_its_place_on_the_page() -> None:
    texts = {file.stem: file.read_text("utf-8") for file in BENCHMARKS.glob("*.py")}
    assert len(texts) >= 9
    found = {name for name, text in texts.items() if " = parser(__doc__)" in text}
    assert len(found) >= 4
    assert found <= set(ORDER)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ORDER)
def test_a_quick_look(name: str, tmp_path: Path) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent, capture_output=True)
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["name"] == name
    assert report["timings"]
    assert report["figures"]
