"""A W&B run as its own file tells it, read without W&B's server."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from showtell import tracking


def read_records(path: Path) -> list[Any]:
    """All records of a ``.wandb`` file: LevelDB's log, blocks of 32 KiB with fragments of them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, fragments, records = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while position < len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragments += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last fragment
            records.append(Record.FromString(fragments))
            fragments = b""
    return records


def wandb_file(folder: Path) -> Path:
    """The file of the latest W&B run in a run folder."""
    files = sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    return files[-1]


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class Recorded:
    """The content of one W&B run, as its own file tells it."""

    def __init__(self, folder: Path) -> None:
        tracking._abandon_service()  # which closes the file
        records = read_records(wandb_file(folder))

        def of_kind(kind: str) -> list[Any]:
            return [getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind]

        self.run = of_kind("run")[0]
        self.config = values(self.run.config.update)
        self.points = [values(record.item) for record in of_kind("history")]
        self.summary: dict[str, Any] = {}
        for record in of_kind("summary"):
            self.summary |= values(record.update)
        self.exit_codes = {record.exit_code for record in of_kind("exit")}
        self.axes = {
            metric.name or metric.glob_name: metric.step_metric for metric in of_kind("metric")
        }
        self.measured = {item.key for stats in of_kind("stats") for item in stats.item}
        # Name of an artifact -> the files of its last version.
        self.artifacts = {
            record.name: {c.path: Path(c.local_path) for c in record.manifest.contents}
            for record in of_kind("artifact")
        }
        self.aliases = {record.name: list(record.aliases) for record in of_kind("artifact")}

    def curve(self, name: str) -> list[tuple[int, Any]]:
        return [(point["step"], point[name]) for point in self.points if name in point]
