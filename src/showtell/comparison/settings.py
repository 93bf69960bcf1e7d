"""Differences between the configurations of runs, named as command-line overrides.

A configuration here is flat: path of an option -> its value as one would type it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from showtell.config import (
    INJECTED,
    PLACES_OF_DATA,
    TARGET,
    choices_of,
    quoted,
    with_added_defaults,
)
from showtell.runs import BEGAN_WITH, MEAN_OF, is_ensemble

Settings = Mapping[str, str]

# Paths, tracking and names do not affect scores; the seed does so by chance only.
_WITHOUT_EFFECT = (
    *("name", "seed", "resume", "start_from", "output", "features", "tracking"),
    *("search", "data.skip_rejected"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.profiler"),
    *("callbacks.checkpoint_every_steps", "callbacks.progress_refresh"),
    *(place.removesuffix("=") for place in PLACES_OF_DATA),
)
# Options that name a file are compared by its content (`_CONTENTS`); the name is only shown.
_FILES = ("encoder.weights", "text.vectors")
_CONTENTS = ("weights", "vectors", "training images", "validation images", "start", "mean of")
_HASH_DIGITS = 8
_PLAIN = ("seed", "start_from")  # outside the groups, but part of the command
# The views in which an image is captioned; the usual one is not shown.
_VIEWS, _ONE_VIEW = "views", "original"
_UNQUOTED = re.compile(r"[\w./+@-]+(:[\w./+@-]+)*")
_ABSENT = "absent"
# Has an effect in ensembles alone, and is told of no other run.
_OF_ENSEMBLES = "decoding.pool"


def settings_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """All settings that may affect a run's scores, from its ``config.yaml`` and ``run.json``."""
    text, images = record["text"], record["data"].get("images", {})
    contents = (
        _encoder_of(record["encoder"]),
        text.get("vectors_sha256", text.get("vectors")),
        *(images.get(split) for split in ("train", "val")),
        _start_of(record),
        len(record.get(MEAN_OF, ())) or None,
    )
    shown = (_shown(content)[:_HASH_DIGITS] for content in contents)
    if "members" in record:  # the configuration has only the first one's
        config = {**config, "model": record["model"]}
    views = {_VIEWS: record.get(_VIEWS, _ONE_VIEW)}  # older runs have no views
    flat = _flat(with_added_defaults(config))
    if not is_ensemble(record):
        flat.pop(_OF_ENSEMBLES, None)
    return flat | views | dict(zip(_CONTENTS, shown, strict=True))


def _encoder_of(described: Mapping[str, Any]) -> str | None:
    """The hash of the weights that the encoder had before the training."""
    kept = described.get("identity", {}).get("weights")
    began_with: str | None = described.get(BEGAN_WITH, kept)
    return began_with


def _start_of(record: Mapping[str, Any]) -> str | None:
    """The run that this one started from: None, or a hash of its settings without the seed."""
    start = record.get("start")
    if not start:
        return None
    flat = _flat(with_added_defaults(start["config"]))
    flat.pop(_OF_ENSEMBLES, None)
    return hashlib.sha256(repr(sorted(flat.items())).encode()).hexdigest()


def key_of(settings: Settings) -> frozenset[tuple[str, str]]:
    """A key that is equal for runs that differ by their seeds only."""
    return frozenset(item for item in settings.items() if item[0] not in _FILES)


def names_of(configurations: Sequence[Settings]) -> list[tuple[str, ...]]:
    """For each of several different configurations, the overrides that distinguish it."""
    return [
        tuple(f"{key}={value}" for key, value in each.items())
        for each in differences(configurations)
    ]


def differences(configurations: Sequence[Settings]) -> list[dict[str, str]]:
    """For each of several different configurations, the values that distinguish it.

    An option that a configuration does not have, such as one of another model, is left out of it. A
    single configuration is named by its model.
    """
    overrides = [_overrides(settings) for settings in configurations]
    keys = list(dict.fromkeys(key for each in overrides for key in each))
    varying = [key for key in keys if len({each.get(key) for each in overrides}) > 1]
    told = [
        _picked(varying or ["model"], {**settings, **each})
        for settings, each in zip(configurations, overrides, strict=True)
    ]
    if len({tuple(each.items()) for each in told}) == len(told):
        return told
    return [t | _picked(_CONTENTS, s) for t, s in zip(told, configurations, strict=True)]


def common_part(configurations: Sequence[Settings]) -> str:
    """The overrides that all configurations share."""
    first, *others = [_overrides(settings) for settings in configurations]
    shared = [key for key in first if all(each.get(key) == first[key] for each in others)]
    return " ".join(f"{key}={first[key]}" for key in shared)


def command_of(config: Mapping[str, Any]) -> str:
    """The command line that composes this configuration again, safe to paste into a shell.

    Tracking and output options are left out.
    """
    flat = _flat(with_added_defaults(config), whole=True)
    flat.pop(_OF_ENSEMBLES, None)
    overrides = {
        key: value
        for key, value in _overrides(flat, whole=True).items()
        if value != _ABSENT and key.partition(".")[0] != "tracking"
    }
    overrides |= {key: flat[key] for key in _PLAIN if flat.get(key, "null") != "null"}
    words = (f"{key}={value}" for key, value in overrides.items())
    return shlex.join(["python", "train.py", *words])


def _picked(keys: Sequence[str], values: Mapping[str, str]) -> dict[str, str]:
    return {key: values[key] for key in keys if key in values}


def _overrides(settings: Settings, *, whole: bool = False) -> dict[str, str]:
    """The shortest command line with these settings: a choice per group, and what differs."""
    overrides: dict[str, str] = {}
    for group in (group for group in INJECTED if f"{group}.{TARGET}" in settings):
        own = {key: value for key, value in settings.items() if key.startswith(f"{group}.")}
        overrides[group], usual = _nearest_choice(group, own, whole=whole)
        overrides |= {key: value for key, value in own.items() if usual.get(key) != value}
        overrides |= {k: _ABSENT for k in usual if k not in own and k != _OF_ENSEMBLES}
    if settings.get(_VIEWS, _ONE_VIEW) != _ONE_VIEW:
        overrides[_VIEWS] = settings[_VIEWS]
    return overrides


def _nearest_choice(group: str, own: Settings, *, whole: bool) -> tuple[str, Settings]:
    """Name and settings of the most similar file in ``conf/<group>/``.

    If no file there has this class any more, the class name and its ``_target_``.
    """
    target = f"{group}.{TARGET}"

    def distance(choice: tuple[str, Settings]) -> tuple[int, bool, str]:
        name, usual = choice
        return len(own.items() ^ usual.items()), name != "default", name

    choices = _choices(group, whole=whole).items()
    same = [choice for choice in choices if choice[1].get(target) == own[target]]
    if not same:
        return own[target].rpartition(".")[2], {target: own[target]}
    return min(same, key=distance)


@cache
def _choices(group: str, *, whole: bool) -> dict[str, Settings]:
    return {name: _flat({group: node}, whole=whole) for name, node in choices_of(group).items()}


def _flat(node: Mapping[str, Any], above: str = "", *, whole: bool = False) -> dict[str, str]:
    """Path of an option -> its value.

    With ``whole``, options without effect are included and values are in Hydra's syntax.
    """
    flat: dict[str, str] = {}
    for key, value in node.items():
        path = f"{above}{key}"
        if path in _WITHOUT_EFFECT and not whole:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}.", whole=whole)
        elif whole:
            flat[path] = _typed(value)
        else:
            flat[path] = _shown(Path(value).name if path in _FILES and value else value)
    return flat


def _shown(value: object) -> str:
    """A value as one would type it; 1 and 1.0 are the same."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if value.is_integer():
            return str(int(value))
        case list():
            return f"[{','.join(map(_shown, value))}]"
    return printable(str(value))


def _typed(value: object) -> str:
    """A value in Hydra's syntax: text that Hydra would read as something else is quoted."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if not isinstance(value, str):
        return _shown(value)
    text = printable(value)
    if _UNQUOTED.fullmatch(text) and isinstance(yaml.safe_load(text), str):
        return text
    return quoted(text)


def printable(text: str) -> str:
    """``text`` with control characters replaced: it may come from somebody else's folder."""
    return "".join(character if character.isprintable() else "?" for character in text)
