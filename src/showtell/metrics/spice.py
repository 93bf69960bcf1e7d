"""SPICE (Anderson et al. 2016) through pycocoevalcap, where its jars have been downloaded."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pycocoevalcap.spice import get_stanford_models
from pycocoevalcap.spice.spice import Spice

from showtell.errors import UserError
from showtell.metrics.java import INSTALL_JAVA, find_java

_LIBRARY = Path(get_stanford_models.__file__).with_name(get_stanford_models.SPICELIB)


class SpiceError(UserError):
    """SPICE could not run."""


def spice_obstacle() -> str | None:
    """What SPICE lacks and the remedy, or None when it can run."""
    if find_java() is None:
        return f"SPICE needs a Java runtime: {INSTALL_JAVA}"
    if not (_LIBRARY / f"{get_stanford_models.JAR}.jar").exists():
        return (
            "SPICE needs the Stanford CoreNLP models, a download of about 400 MB: run "
            'python -c "from pycocoevalcap.spice.get_stanford_models import *; '
            'get_stanford_models()" once, with network'
        )
    return None


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """SPICE of each caption, 0 to 1; that of a set is their mean.

    Raises:
        SpiceError: its Java program failed.
    """
    # pycocoevalcap sorts the images by their ids: numbers of one width keep their order.
    numbers = [f"{number:09d}" for number in range(len(captions))]
    try:
        with _java_on_path(), contextlib.redirect_stdout(io.StringIO()):
            _, parts = Spice().compute_score(
                {number: list(r) for number, r in zip(numbers, references, strict=True)},
                {number: [caption] for number, caption in zip(numbers, captions, strict=True)},
            )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SpiceError(f"SPICE failed ({error}): it is known to run on Java 8") from error
    return [float(part["All"]["f"]) for part in parts]


@contextlib.contextmanager
def _java_on_path() -> Iterator[None]:
    """pycocoevalcap calls ``java`` by name, wherever the runtime was found."""
    java, before = find_java(), os.environ.get("PATH", "")
    assert java is not None
    os.environ["PATH"] = f"{java.parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
