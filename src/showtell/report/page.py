"""From content to one self-contained HTML file: templates, number formats, the style sheet.

The templates escape everything they are given: captions, file names and configurations come from
others, and a page that is passed around must not contain their HTML.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from showtell.errors import UserError
from showtell.files import write_atomically

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


def write_page(output: Path, template: str, **content: Any) -> Path:
    """Fill ``template`` and write it atomically to ``output``; return ``output``.

    Raises:
        UserError: the file cannot be written.
    """
    html = _environment().get_template(template).render(content)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, html.encode())
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}); make room or name another output"
        ) from error
    return output


def score_text(value: float) -> str:
    """A score times 100, as papers, the terminal and comparisons print it."""
    return f"{100 * value:.1f}"


def count_text(value: int) -> str:
    """A count with thousands separators."""
    return f"{value:,}"


@cache
def _environment() -> Environment:
    loader = PackageLoader("showtell.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=score_text, count=count_text)
    environment.globals["split_names"] = SPLIT_NAMES
    # The only text that is not escaped: it is ours, with nothing from outside.
    style, _, _ = loader.get_source(environment, "style.css")
    environment.globals["style"] = Markup(style)
    return environment
