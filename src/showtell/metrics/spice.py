"""SPICE (Anderson et al. 2016), by pycocoevalcap's Java program if its models are installed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocoevalcap.spice import get_stanford_models
from pycocoevalcap.spice import spice as pycocoevalcap_spice

from showtell.errors import UserError
from showtell.metrics.java import INSTALL_JAVA, LOCALE_OPTIONS, find_java

LIMIT_SECONDS = 300.0
_SECONDS_PER_SENTENCE = 0.5  # parsing a sentence takes a few tenths of a second

_FOLDER = Path(pycocoevalcap_spice.__file__).parent
_LIBRARY = _FOLDER / get_stanford_models.SPICELIB
_MODELS = (f"{get_stanford_models.JAR}.jar", f"{get_stanford_models.JAR}-models.jar")


class SpiceError(UserError):
    """SPICE could not run."""


def spice_obstacle() -> str | None:
    """What SPICE lacks and the remedy, or None if it can run."""
    if find_java() is None:
        return f"SPICE needs a Java runtime: {INSTALL_JAVA}"
    if not all((_LIBRARY / name).exists() for name in _MODELS):
        return (
            "SPICE needs Stanford CoreNLP, about 400 MB: python -m "
            "pycocoevalcap.spice.get_stanford_models (offline: docs/metrics.md)"
        )
    return None


def spice(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    limit_seconds: float = LIMIT_SECONDS,
) -> list[float]:
    """SPICE of each caption, 0 to 1; the corpus score is their mean.

    Args:
        captions: words separated by spaces, like the references.
        references: any number for each caption.
        limit_seconds: time limit of the Java program; each sentence adds 0.5 s.

    Raises:
        SpiceError: the Java program failed or exceeded the limit.
    """
    pairs = zip(captions, references, strict=True)
    rows = [
        {"image_id": number, "test": caption, "refs": list(sentences)}
        for number, (caption, sentences) in enumerate(pairs)
    ]
    sentences = len(captions) + sum(map(len, references))
    allowed = limit_seconds + _SECONDS_PER_SENTENCE * sentences
    try:
        results = _run(rows, allowed)
        scores = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in results}
        return [scores[number] for number in range(len(rows))]
    except subprocess.TimeoutExpired as error:
        raise SpiceError(
            f"SPICE did not end within {allowed:.0f} s and was stopped: score fewer images, or "
            "leave it out"
        ) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["nothing"]
        raise SpiceError(
            f"SPICE failed (Java said: {said[0]}): it is known to run on Java 8 with 8 GB"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpiceError(f"SPICE failed ({error!r}): it is known to run on Java 8") from error


def _run(rows: Sequence[dict[str, Any]], limit_seconds: float) -> list[dict[str, Any]]:
    """Run the Java program on ``rows`` as pycocoevalcap does, but with a time limit."""
    java = find_java()
    assert java is not None
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "captions.json"), Path(folder, "scores.json")
        question.write_text(json.dumps(rows), encoding="utf-8")
        program = [str(java), *LOCALE_OPTIONS, "-Xmx8G", "-jar", pycocoevalcap_spice.SPICE_JAR]
        subprocess.run(
            [*program, str(question), "-out", str(answer), "-subset", "-silent"],
            cwd=_FOLDER,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_seconds,
            check=True,
        )
        results: list[dict[str, Any]] = json.loads(answer.read_text("utf-8"))
        return results
