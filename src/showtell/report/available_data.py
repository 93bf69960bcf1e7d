"""Finds the data set of a run, so that a page can show its images, if it is still there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showtell.config import TARGET, build, check_node
from showtell.errors import UserError
from showtell.runs import CONFIG
from showtell.types import CaptionData, CaptionedImage


@dataclass(frozen=True)
class AvailableData:
    """The data set that a run names; ``problem`` says why it is missing or may be another one."""

    data: CaptionData | None
    problem: str | None


def find_data_set(config: Mapping[str, Any], record: Mapping[str, Any]) -> AvailableData:
    """The data set that a run's ``config.yaml`` names, compared with its ``run.json``."""
    node = config.get("data")
    if not isinstance(node, dict):
        return AvailableData(None, f"{CONFIG} names no data set")
    try:
        if problems := check_node("data", node):
            return AvailableData(None, problems[0])
        # Building the built-in data set would draw it if missing; a report must not write there.
        if node[TARGET].endswith(".scenes.files.scenes") and not Path(node["root"]).is_dir():
            return AvailableData(None, f"{node['root']} is not there")
        data = build("data", node)
    except UserError as error:
        return AvailableData(None, str(error))
    if not isinstance(data, CaptionData):
        return AvailableData(None, f"data._target_={node['_target_']} is no data set")
    if data.origin != record.get("data", {}).get("origin"):
        return AvailableData(data, "its text files are not those the run was trained on")
    return AvailableData(data, None)


def captioned(captions: Mapping[str, str], data: CaptionData) -> list[CaptionedImage]:
    """The pictures that have a caption, in the order of the data set."""
    return [image for image in data.images if image.image_id in captions]
