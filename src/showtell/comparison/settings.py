"""What tells the configurations of runs apart, and names for them in the words of a command line.

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

from showtell.config import INJECTED, PLACES_OF_DATA, TARGET, choices_of, completed, quoted
from showtell.runs import BEGAN_WITH, MEAN_OF

Settings = Mapping[str, str]

# Where things lie, how a run is watched and what it is called change no score; the seed changes
# it by chance.
_WITHOUT_EFFECT = (
    *("name", "seed", "resume", "start_from", "output", "features", "tracking"),
    *("search", "data.skip_rejected"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.profiler"),
    *("callbacks.checkpoint_every_steps", "callbacks.progress_refresh"),
    *(place.removesuffix("=") for place in PLACES_OF_DATA),
)
# Options that name a file count by what was in it; by their name they are only shown.
_FILES = ("encoder.weights", "text.vectors")
_CONTENTS = ("weights", "vectors", "training images", "validation images", "start", "mean of")
_HASH_DIGITS = 8
_PLAIN = ("seed", "start_from")  # outside the groups, and part of what a run is
# Of a picture when it is captioned; with one there is nothing to tell.
_VIEWS, _ONE_VIEW = "views", "original"
_UNQUOTED = re.compile(r"[\w./+@-]+(:[\w./+@-]+)*")
_ABSENT = "absent"


def settings_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """All that may change the scores of the run of this ``config.yaml`` and ``run.json``."""
    text, images = record["text"], record["data"].get("images", {})
    contents = (
        _encoder_of(record["encoder"]),
        text.get("vectors_sha256", text.get("vectors")),
        *(images.get(split) for split in ("train", "val")),
        _start_of(record),
        len(record.get(MEAN_OF, ())) or None,
    )
    shown = (_shown(content)[:_HASH_DIGITS] for content in contents)
    if "members" in record:  # the configuration tells of the first of them
        config = {**config, "model": record["model"]}
    views = {_VIEWS: record.get(_VIEWS, _ONE_VIEW)}  # runs of before there were views do not say
    return _flat(completed(config)) | views | dict(zip(_CONTENTS, shown, strict=True))


def _encoder_of(described: Mapping[str, Any]) -> str | None:
    """The hash of the weights that the encoder had before the training."""
    kept = described.get("identity", {}).get("weights")
    began_with: str | None = described.get(BEGAN_WITH, kept)
    return began_with


def _start_of(record: Mapping[str, Any]) -> str | None:
    """What the run began with: None, or the hash of a run's settings, whatever its seed."""
    start = record.get("start")
    if not start:
        return None
    return hashlib.sha256(
        repr(sorted(_flat(completed(start["config"])).items())).encode()
    ).hexdigest()


def key_of(settings: Settings) -> frozenset[tuple[str, str]]:
    """Equal for runs that differ by their seeds only."""
    return frozenset(item for item in settings.items() if item[0] not in _FILES)


def names_of(configurations: Sequence[Settings]) -> list[tuple[str, ...]]:
    """For each of some different configurations the overrides that tell it from the others."""
    return [
        tuple(f"{key}={value}" for key, value in each.items())
        for each in differences(configurations)
    ]


def differences(configurations: Sequence[Settings]) -> list[dict[str, str]]:
    """For each of some different configurations the values that tell it from the others.

    What one has no place for, such as an option of another model, it has no value of. A single
    configuration has its model.
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
    """The overrides that all of them share."""
    first, *others = [_overrides(settings) for settings in configurations]
    shared = [key for key in first if all(each.get(key) == first[key] for each in others)]
    return " ".join(f"{key}={first[key]}" for key in shared)


def command_of(config: Mapping[str, Any]) -> str:
    """The command line that composes this configuration again, safe to paste into a shell.

    How it was watched and where it was written are left to whoever types it.
    """
    flat = _flat(completed(config), whole=True)
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
    """The shortest command line with these settings: a choice of each group, and what differs."""
    overrides: dict[str, str] = {}
    for group in (group for group in INJECTED if f"{group}.{TARGET}" in settings):
        own = {key: value for key, value in settings.items() if key.startswith(f"{group}.")}
        overrides[group], usual = _nearest_choice(group, own, whole=whole)
        overrides |= {key: value for key, value in own.items() if usual.get(key) != value}
        overrides |= {key: _ABSENT for key in usual if key not in own}
    if settings.get(_VIEWS, _ONE_VIEW) != _ONE_VIEW:
        overrides[_VIEWS] = settings[_VIEWS]
    return overrides


def _nearest_choice(group: str, own: Settings, *, whole: bool) -> tuple[str, Settings]:
    """Name and settings of the file of ``conf/<group>/`` that comes nearest.

    The class itself, when it is none of ours any more.
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
    """Path of an option -> its value; ``whole`` with what has no effect, and as Hydra reads it."""
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
    """A value for Hydra: text that it would take for something else stands in quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if not isinstance(value, str):
        return _shown(value)
    text = printable(value)
    if _UNQUOTED.fullmatch(text) and isinstance(yaml.safe_load(text), str):
        return text
    return quoted(text)


def printable(text: str) -> str:
    """``text`` without what could move a cursor: it may come from a folder of somebody else."""
    return "".join(character if character.isprintable() else "?" for character in text)
