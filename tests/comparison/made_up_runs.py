"""Run folders as an evaluation leaves them, with scores that are given image by image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from showtell import runs
from showtell.config import compose
from showtell.metrics.statistics import CaptionStatistics, mean_statistics
from showtell.types import Split

SIGNATURE = "scorers:pycocoevalcap-1.2|images:4|beam:3"


def composed(*overrides: str) -> dict[str, Any]:
    """As ``compose``, but unchecked and quicker for values: only choices are composed."""
    values = [override for override in overrides if "." in override.partition("=")[0]]
    config = deepcopy(_chosen(*(override for override in overrides if override not in values)))
    for override in values:
        path, _, value = override.partition("=")
        *groups, key = path.split(".")
        node = config
        for group in groups:
            node = node[group]
        assert key in node, f"{path}: there is no such option"
        node[key] = yaml.safe_load(value)
    return config


@cache
def _chosen(*choices: str) -> dict[str, Any]:
    return compose(choices)


def made_up_run(
    root: Path,
    *overrides: str,
    seed: int = 1,
    scores: Mapping[str, Sequence[float]],
    split: Split = "val",
    signature: str = SIGNATURE,
    references: str = "same",
    **record: Any,
) -> Path:
    """A run whose ``scores`` are metric -> score of each image; ``record`` goes into run.json."""
    folder = root / f"run_{len(list(root.iterdir()) if root.exists() else []):02}"
    folder.mkdir(parents=True)
    config = {**composed(*overrides), "seed": seed, "output": {"root": str(root), "folder": None}}
    # libyaml, for those who make hundreds.
    text = yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    (folder / "config.yaml").write_text(text)
    _write_record(folder, config, record)
    image_ids = tuple(f"{i}.jpg" for i in range(len(next(iter(scores.values())))))
    arrays = {metric: mean_statistics(values) for metric, values in scores.items()}
    statistics = CaptionStatistics(image_ids, arrays, references, signature)
    runs.save_statistics(folder, split, statistics)
    written = {**statistics.scores, "signature": signature}
    runs.write_json(folder / f"scores-{split}.json", written)
    return folder


def _write_record(folder: Path, config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    record = {
        "format": 1,
        "status": "finished",
        "seed": config["seed"],
        "data": {
            "name": "flickr8k",
            "origin": {"token.txt": "ab" * 32},
            "images": {"train": 6000, "val": 4},
        },
        "encoder": {"weights": None, "identity": {"weights": "cd" * 32}},
        "text": {**config["text"], "vectors_sha256": "ef" * 32},
        **changes,
    }
    (folder / runs.RECORD).write_text(json.dumps(record))


def rouge(*each: float) -> dict[str, Sequence[float]]:
    """The score of each image in one metric."""
    return {"ROUGE-L": each}


def steady(score: float, images: int = 4) -> dict[str, Sequence[float]]:
    """One score for every image: which images are drawn changes nothing."""
    return rouge(*np.full(images, score).tolist())
