"""A run folder and its data set, a few pictures small, for the tests of the pages."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from showtell.data.sources import table

COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "yellow", "grey")
HOSTILE = '<script>alert("x")</script> & <img src=http://example.org/a.png onerror=alert(1)>'


@dataclass(frozen=True)
class SmallRun:
    """Where the run and its data set are, and how to change one file of the run."""

    folder: Path
    table: Path

    def write(self, name: str, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def make_small_run(root: Path) -> SmallRun:
    """Nine validation pictures, one of them with hostile captions, and nine for training."""
    run = SmallRun(root / "run", _write_data_set(root / "data"))
    run.folder.mkdir()
    node = {"_target_": "showtell.data.sources.table", "file": str(run.table)}
    node |= {"images": None, "split_seed": 0, "skip_rejected": False}
    config = {"data": node, "callbacks": {"monitor": "val/BLEU-4"}, "name": HOSTILE}
    run.write("config.yaml", yaml.safe_dump(config))
    run.write("run.json", _record(run.table))
    run.write("metrics.csv", METRICS)
    run.write("scores-val.json", SCORES)
    captions = {f"val-{c}.png": f"a {c} square on the wall" for c in COLOURS[:-2]}
    captions |= {"val-yellow.png": "nothing of the kind", "val-grey.png": HOSTILE}
    run.write("captions-val.json", [{"image_id": i, "caption": c} for i, c in captions.items()])
    return run


def _write_data_set(folder: Path) -> Path:
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "split"])
        for split in ("train", "val"):
            for colour in COLOURS:
                name = f"{split}-{colour}.png"
                Image.new("RGB", (640, 480), colour).save(folder / name)
                rows.writerow([name, f"A {colour} square on the wall .", split])
                rows.writerow([name, f"{HOSTILE} {colour}", split])
    return folder / "captions.csv"


def _record(table_file: Path) -> dict[str, Any]:
    data = table(file=str(table_file), images=None, split_seed=0, skip_rejected=False)
    return {
        "format": 1,
        "status": "finished",
        "commit": "0123abc",
        "versions": {"showtell": "0.1.0"},
        "seed": 0,
        "data": {
            "name": data.name,
            "origin": data.origin,
            "images": {"train": 9, "val": 9},
            "captions": {"train": 18, "val": 18},
        },
        "encoder": {"weights": None, "identity": {"network": HOSTILE, "weights": "ab" * 32}},
        "text": {"min_count": 1, "coverage": None},
        "model": {"_target_": "showtell.models.lstm.LSTMDecoder", "hidden_size": 512},
        "decoding": {"_target_": "showtell.decoding.beam.BeamSearch", "beam_size": 3},
    }


METRICS = """\
epoch,step,train/step_loss,val/loss,val/BLEU-4,val/CIDEr,train/loss
0,1,4.0,,,,
0,3,3.5,3.0,0.10,0.30,3.6
1,5,3.0,,,,
1,7,2.5,2.5,0.20,0.50,2.7
2,9,nan,,,,
2,11,2.2,2.6,0.15,0.60,2.1
"""
SCORES = {
    "BLEU-1": 0.6312,
    "BLEU-4": 0.2,
    "CIDEr": 0.5531,
    "images": 9,
    "references": 1018,
    "signature": "tokenizer:ptb",
    "skipped/METEOR": "METEOR needs Java",
}
