"""The learning curves of a training: reads ``metrics.csv`` and makes charts of it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from showtell.report.charts import Chart, Line, Point, line_chart

# Repeated from `showtell.tracking`, because importing that would import Lightning.
METRICS_FILE = "metrics.csv"
BLEU_ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Best:
    """The validation whose weights were saved: its 1-based epoch and its ``monitor`` score."""

    monitor: str
    epoch: int
    score: float


@dataclass(frozen=True)
class Curves:
    """Metric name -> points (completed epochs, value); an epoch's values lie at its end.

    ``x_name`` is the unit of x: ``step`` until the first epoch has ended, then ``epoch``.
    """

    points: dict[str, list[Point]]
    x_name: str

    def best(self, monitor: str | None) -> Best | None:
        """The first validation with the highest ``monitor``; None before any validation."""
        found = self.points.get(monitor or "")
        if not found or not monitor:
            return None
        epoch, score = max(found, key=lambda point: point[1])
        return Best(monitor, round(epoch), score)

    def at_best(self, monitor: str | None) -> dict[str, float]:
        """All values logged together with the first highest ``monitor``; empty before any."""
        found = self.points.get(monitor or "")
        if not found:
            return {}
        place, _ = max(found, key=lambda point: point[1])
        each = {name: dict(points).get(place) for name, points in self.points.items()}
        return {name: value for name, value in each.items() if value is not None}

    def charts(self, best: Best | None) -> list[Chart]:
        """Charts of loss, reward, BLEU and CIDEr, as far as logged, with the best epoch marked."""
        mark = (float(best.epoch), f"best: epoch {best.epoch}") if best else None
        charts = []
        if loss := self._lines({"train/step_loss": "", "train/loss": "train", "val/loss": "val"}):
            title = "Loss, nats per word"
            charts.append(line_chart(title, loss, x_name=self.x_name, from_zero=False, mark=mark))
        if reward := self._lines({"train/step_reward": "", "train/reward": "train"}):
            title = "Reward of drawn captions, CIDEr-D"
            charts.append(line_chart(title, reward, x_name=self.x_name, mark=mark))
        bleu_names = {f"val/BLEU-{n}": f"BLEU-{n}" for n in BLEU_ORDERS}
        if bleu := self._lines(bleu_names, factor=100):
            charts.append(line_chart("Validation BLEU x 100", bleu, x_name=self.x_name, mark=mark))
        if cider := self._lines({"val/CIDEr": "CIDEr"}, factor=100):
            title = "Validation CIDEr x 100"
            charts.append(line_chart(title, cider, x_name=self.x_name, mark=mark))
        return charts

    def _lines(self, names: dict[str, str], factor: float = 1) -> list[Line]:
        return [
            Line(
                shown,
                [(x, factor * y) for x, y in self.points[name]],
                tone="tone-" + name.replace("/", "-").lower(),
            )
            for name, shown in names.items()
            if name in self.points
        ]


def read_curves(path: Path) -> Curves:
    """Read the curves so far; empty if the file is missing or has no numbers yet.

    A training may still be writing the file: an incomplete last line is left out, and so are values
    that are not finite.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    steps = _steps_per_epoch(rows)
    points: dict[str, list[Point]] = {}
    for row in rows:
        step = _finite(row.get("step"))
        for name, cell in row.items():
            value = _finite(cell)
            if step is not None and value is not None and name not in ("epoch", "step"):
                points.setdefault(name, []).append(((step + 1) / (steps or 1), value))
    return Curves(points, x_name="epoch" if steps else "step")


def _steps_per_epoch(rows: list[dict[str, str]]) -> float | None:
    """Optimizer steps per epoch, from the last row that ends an epoch; None if there is none."""
    for row in reversed(rows):
        step, epoch = _finite(row.get("step")), _finite(row.get("epoch"))
        if row.get("val/loss") and step is not None and epoch is not None:
            return (step + 1) / (epoch + 1)
    return None


def _finite(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
