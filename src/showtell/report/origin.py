"""What was trained on what: the entries of ``run.json`` as readable facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from showtell.report.page import SPLIT_NAMES

HASH_DIGITS = 12
HASH_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Facts:
    """A group of named values."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The main facts of a run; what ``run.json`` does not say is ``?`` or 0."""

    model: str
    data: str
    encoder: str
    pictures: int
    captions: int
    seed: str
    status: str

    @property
    def title(self) -> str:
        """Model and data set, such as ``LSTMDecoder on flickr8k``."""
        return f"{self.model} on {self.data}"


def summary_of(record: Mapping[str, Any]) -> Summary:
    """Summarize ``run.json``; images and captions are counted in the training split."""
    data = record.get("data", {})
    return Summary(
        model=_class_name(record.get("model", {})),
        data=data.get("name", "?"),
        encoder=record.get("encoder", {}).get("identity", {}).get("network", "?"),
        pictures=data.get("images", {}).get("train", 0),
        captions=data.get("captions", {}).get("train", 0),
        seed=str(record.get("seed", "?")),
        status=record.get("status", "?"),
    )


def facts_of(record: Mapping[str, Any]) -> list[Facts]:
    """All of ``run.json`` in groups; what a record lacks is left out."""
    identity = record.get("encoder", {}).get("identity", {})
    groups = [
        Facts("Data", tuple(_data(record.get("data", {})))),
        Facts("Encoder", tuple(_leaves(identity))),
        Facts("Words", tuple(_leaves(record.get("text", {})))),
        Facts("Model", tuple(_model(record))),
        Facts("Decoding", tuple(_leaves(record.get("decoding", {})))),
        Facts("Software", tuple(_software(record))),
    ]
    return [group for group in groups if group.rows]


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "?")).rpartition(".")[2]


def _data(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "name" in data:
        yield "name", str(data["name"])
    for split, images in data.get("images", {}).items():
        captions = data.get("captions", {}).get(split, 0)
        yield SPLIT_NAMES.get(split, split), f"{images:,} pictures, {captions:,} captions"
    for file, checksum in data.get("origin", {}).items():
        yield file, _text(checksum)


def _model(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = record.get("model", {})
    if model:
        yield "class", _class_name(model)
    yield from _leaves(model)
    yield from _leaves(record.get("model_sizes", {}))


def _software(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("seed", "commit", "created_at", "platform"):
        if key in record:
            yield key.replace("_", " "), _text(record[key])
    yield from _leaves(record.get("versions", {}))


def _leaves(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings in a node and in its nested nodes; nested names are prefixed with their key."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from ((f"{key} {name}", text) for name, text in _leaves(value))
        elif key != "_target_":
            yield key, _text(value)


def _text(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(_text, value))
        case str() if len(value) == HASH_LENGTH and set(value) <= set("0123456789abcdef"):
            return f"{value[:HASH_DIGITS]}…"
    return str(value)
