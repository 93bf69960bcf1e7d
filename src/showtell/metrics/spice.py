"""SPICE (Anderson et al. 2016) through pycocoevalcap, where its jars have been downloaded."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
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


def spice(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """Corpus SPICE and that of each image, 0 to 1.

    Raises:
        SpiceError: its Java program failed.
    """
    hypotheses = {image_id: [caption] for image_id, caption in captions.items()}
    try:
        with _java_on_path(), contextlib.redirect_stdout(io.StringIO()):
            corpus, parts = Spice().compute_score(
                {image_id: list(sentences) for image_id, sentences in references.items()},
                hypotheses,
            )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SpiceError(f"SPICE failed ({error}): it is known to run on Java 8") from error
    # pycocoevalcap returns the images in the order of their sorted ids.
    scores = {i: part["All"]["f"] for i, part in zip(sorted(captions), parts, strict=True)}
    return float(corpus), scores


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
