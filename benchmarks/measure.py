"""The harness of all benchmarks: pieces of work timed side by side, and the machine's own limits.

The works of a benchmark run in turns (A B C, A B C, ...), so that a machine that slows down slows
all of them, and results are ratios, each taken within a turn. A benchmark is a script:

    timings = time_in_turns({
        "cell loop": Work(cell_loop, {"tokens": 1900, "FLOP": 2.4e10}),
        "ours": Work(ours, {"tokens": 1900, "FLOP": 2.4e10}),
        "limit": matrix_product(2048, 2048, 2048),
    }, turns=7)
    report = Report("training", timings, [
        ratio("over the cell loop", timings["ours"], timings["cell loop"], "tokens", target=2),
        ratio("share of the peak", timings["ours"], timings["limit"], "FLOP", target=0.6),
    ])
    report.show()
    report.save(options.output)  # outputs/bench/training.json, for docs/performance.md
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from showtell.cpu_matmul import pytorch_matmul, use_onednn_matmul

RESULTS = Path(__file__).parents[1] / "outputs" / "bench"
# Least seconds of a sample: shorter ones measure the clock and the scheduler.
SHORTEST_SAMPLE = 0.05
# A work whose call takes this many seconds is called only once to warm up.
LONG_CALL = 1.0
# PyTorch's operators of matrix products, whose last two arguments are the factors.
PRODUCTS = ("aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm", "aten.baddbmm")
PACKAGES = ("torch", "numpy", "lightning", "openvino", "transformers", "timm", "pillow")


@dataclass(frozen=True)
class Work:
    """One thing to time.

    Attributes:
        call: does the work once; it is called repeatedly, also several times for one sample.
        units: the amount of work in one call, e.g. ``{"images": 32, "FLOP": 1.5e10}``. A multiply
            and an add are two FLOP.
        own_clock: whether the call returns the seconds that count, for works that need a setup.
    """

    call: Callable[[], Any]
    units: Mapping[str, float]
    own_clock: bool = False


@dataclass(frozen=True)
class Timing:
    """The samples of one work: seconds per call, one for every turn."""

    seconds: tuple[float, ...]
    units: Mapping[str, float]

    @property
    def median_seconds(self) -> float:
        """Seconds of one call, the median over the turns."""
        return statistics.median(self.seconds)

    def rate(self, unit: str) -> float:
        """Units per second at the median."""
        return self.units[unit] / self.median_seconds

    def rates(self, unit: str) -> list[float]:
        """Units per second in every turn."""
        return [self.units[unit] / seconds for seconds in self.seconds]


@dataclass(frozen=True)
class Figure:
    """One number of the report, with its range over the turns and its target.

    ``target`` is a lower bound, or an upper bound with ``at_most``; None for no target.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str = "x"
    target: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def time_in_turns(works: Mapping[str, Work], *, turns: int) -> dict[str, Timing]:
    """Time all works in turns, after one or two calls of each to warm up.

    Garbage is collected between samples, never within one, and a GPU is synchronized.
    """
    calls = {name: _calls_per_sample(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            seconds[name].append(_sample(work, calls[name]))
    return {name: Timing(tuple(seconds[name]), work.units) for name, work in works.items()}


def _calls_per_sample(work: Work) -> int:
    first = _sample(work, 1)  # allocates, compiles and opens files
    once = _sample(work, 1) if first < LONG_CALL else first
    return max(1, math.ceil(SHORTEST_SAMPLE / max(once, 1e-9)))


def _sample(work: Work, calls: int) -> float:
    """Seconds per call, the mean over ``calls`` calls in a row."""
    gc.collect()
    gc.disable()
    try:
        _wait_for_device()
        start = time.perf_counter()
        if work.own_clock:
            return sum(float(work.call()) for _ in range(calls)) / calls
        for _ in range(calls):
            work.call()
        _wait_for_device()
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(
    name: str, over: Timing, under: Timing, unit: str, *, target: float | None = None
) -> Figure:
    """The rate of ``over`` divided by that of ``under``, both in ``unit`` per second.

    The figure is the median over the turns, with the lowest and the highest ratio.
    """
    ratios = [a / b for a, b in zip(over.rates(unit), under.rates(unit), strict=True)]
    return Figure(name, statistics.median(ratios), min(ratios), max(ratios), "x", target)


def rate(name: str, timing: Timing, unit: str, *, target: float | None = None) -> Figure:
    """The rate of a work, in ``unit`` per second, as a figure."""
    rates = timing.rates(unit)
    return Figure(name, timing.rate(unit), min(rates), max(rates), f"{unit}/s", target)


def matrix_product(m: int, k: int, n: int, device: str = "cpu") -> Work:
    """The arithmetic limit: (m, k) times (k, n) in float32, by the fastest way PyTorch has."""
    left, right = torch.rand(m, k, device=device), torch.rand(k, n, device=device)
    result = torch.empty(m, n, device=device)
    ways: list[Callable[[], Any]] = [lambda: torch.mm(left, right, out=result)]
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if device == "cpu" and linear is not None:
        # oneDNN without the overhead of our way to it; also with a packed factor, its preferred
        # layout, which no training can keep.
        packed = torch.ops.mkldnn._reorder_linear_weight(right.t().contiguous(), m)
        factors = [right.t(), right.t().contiguous(), packed]
        ways += [partial(linear, left, factor, None, "none", [], "") for factor in factors]
    with pytorch_matmul():
        fastest = min(ways, key=_shortest)
    return in_plain_pytorch(Work(fastest, {"FLOP": 2.0 * m * k * n}))


def _shortest(call: Callable[[], Any]) -> float:
    works = [Work(call, {})] * 6
    return min(_sample(work, 1) for work in works)


def in_plain_pytorch(work: Work) -> Work:
    """The same work with PyTorch's own matrix products instead of those showtell replaces."""

    def call() -> Any:
        with pytorch_matmul():
            return work.call()

    return replace(work, call=call)


class Products(TorchDispatchMode):
    """Records the size (m, k, n) of every matrix product in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(func.overloadpacket) in PRODUCTS:
            left, right = args[-2:]
            self.sizes.append((left.numel() // left.shape[-1], *right.shape[-2:]))
            return func(*args, **kwargs)
        # In inference mode composite operators, such as nn.Linear's, arrive undecomposed.
        with self:
            made = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if made is NotImplemented else made

    @property
    def flop(self) -> float:
        """FLOP of all recorded products; a multiply and an add are two."""
        return sum(2.0 * m * k * n for m, k, n in self.sizes)


def products_of(call: Callable[..., object], *arguments: object) -> Products:
    """The matrix products that ``call`` computes, without a backward pass."""
    with Products() as products:
        call(*arguments)
    return products


def memory_triad(mebibytes: int = 64, device: str = "cpu") -> Work:
    """The memory limit (McCalpin's STREAM triad): a = b + 2 c, each ``mebibytes`` of float32."""
    count = mebibytes * 2**18
    b, c = torch.rand(count, device=device), torch.rand(count, device=device)
    a = torch.empty(count, device=device)
    return Work(lambda: torch.add(b, c, alpha=2.0, out=a), {"byte": 3.0 * 4 * count})


def machine() -> dict[str, Any]:
    """The machine and the packages that the figures were measured with."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "products": "oneDNN" if use_onednn_matmul() else "PyTorch's choice",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    """The processor's name; Python knows it only on some systems."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Report:
    """A finished benchmark: its timings, the figures computed from them and other facts.

    Attributes:
        name: name of the benchmark and of its file.
        timings: timings by the name of the work.
        figures: the rows of the second table.
        facts: sizes and settings worth knowing, anything JSON can hold.
    """

    name: str
    timings: Mapping[str, Timing]
    figures: Sequence[Figure]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The whole report, in JSON types."""
        return {
            "name": self.name,
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(),
            "facts": dict(self.facts),
            "timings": {name: _timing_to_json(timing) for name, timing in self.timings.items()},
            "figures": [{**vars(figure), "reached": figure.reached} for figure in self.figures],
        }

    def save(self, folder: Path) -> Path:
        """Write ``<folder>/<name>.json``, replacing an earlier one; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        file.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        return file

    def show(self) -> None:
        """Print the timings and the figures."""
        console = Console()
        console.print(_table_of_timings(self.name, self.timings))
        if self.figures:
            console.print(_table_of_figures(self.figures))


def _timing_to_json(timing: Timing) -> dict[str, Any]:
    return {
        "seconds": list(timing.seconds),
        "median_seconds": timing.median_seconds,
        "units": dict(timing.units),
        "rates": {unit: timing.rate(unit) for unit in timing.units},
    }


def _table_of_timings(title: str, timings: Mapping[str, Timing]) -> Table:
    table = Table("work", "ms a call", "lowest", "highest", "a second", title=title)
    for name, timing in timings.items():
        milliseconds = [1e3 * s for s in (timing.median_seconds, *_ends(timing.seconds))]
        rates = ", ".join(f"{short(timing.rate(unit))} {unit}" for unit in timing.units)
        table.add_row(name, *(f"{value:.2f}" for value in milliseconds), rates)
    return table


def _table_of_figures(figures: Iterable[Figure]) -> Table:
    table = Table("figure", "value", "lowest", "highest", "target", "reached")
    for figure in figures:
        values = [f"{short(v)} {figure.unit}" for v in (figure.value, figure.low, figure.high)]
        bound = "<=" if figure.at_most else ">="
        target = "" if figure.target is None else f"{bound} {short(figure.target)}"
        table.add_row(
            figure.name, *values, target, {None: "", True: "yes", False: "no"}[figure.reached]
        )
    return table


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def short(value: float) -> str:
    """Three significant digits with a unit prefix: 0.617, 12.3, 4.57 k, 98 G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; add your own, then call ``prepare``."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--turns", type=int, default=7, help="turns that count (%(default)s)")
    options.add_argument("--threads", type=int, help="threads PyTorch computes with (its choice)")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options.add_argument(
        "--quick", action="store_true", help="tiny sizes and one turn: does it run at all?"
    )
    return options


def prepare(options: argparse.Namespace) -> None:
    """Set seed, threads, and the matrix products of a training; one turn with ``--quick``."""
    if options.quick:
        options.turns = 1
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    use_onednn_matmul()
