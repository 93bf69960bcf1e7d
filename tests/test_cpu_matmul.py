"""Products by oneDNN: the same numbers as PyTorch's own, wherever PyTorch asks for a product."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from showtell import cpu_matmul

Call = Callable[..., Tensor]


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """oneDNN for products of any size, cut into small pieces; the sizes of what it multiplied."""
    if not (
        hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.library, "get_kernel")
    ):
        pytest.skip("this PyTorch has no oneDNN")
    sizes: list[tuple[int, ...]] = []
    linear = cpu_matmul._linear

    def watched(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sizes.append((*inputs.shape, len(weight)))
        return linear(inputs, weight, bias)

    monkeypatch.setattr(cpu_matmul, "FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(cpu_matmul, "FEWEST_ROWS", 1)
    monkeypatch.setattr(cpu_matmul, "PIECES", (64, 32))
    monkeypatch.setattr(cpu_matmul, "STEP", 16)
    monkeypatch.setattr(cpu_matmul, "FINE_STEP", 8)
    monkeypatch.setattr(cpu_matmul, "_gains_here", lambda: True)
    monkeypatch.setattr(cpu_matmul, "_linear", watched)
    with cpu_matmul.pytorch_matmul():
        with warnings.catch_warnings(action="error"):
            assert cpu_matmul.use_onednn_matmul()
        yield sizes


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


MATRICES: dict[str, Call] = {
    "as it is": normal,
    "transposed": lambda m, n: normal(n, m).t(),
    "columns of a wider one": lambda m, n: normal(m, n + 9)[:, 5 : n + 5],
    "rows of a longer one": lambda m, n: normal(m + 5, n)[3 : m + 3],
    "every second column": lambda m, n: normal(m, 2 * n)[:, ::2],
    "transposed, of a wider one": lambda m, n: normal(n, m + 7)[:, :m].t(),
    "one row again and again": lambda m, n: normal(1, n).expand(m, n),
    "one column again and again": lambda m, n: normal(m, 1).expand(m, n),
}


@pytest.mark.parametrize("right", MATRICES)
@pytest.mark.parametrize("left", MATRICES)
@pytest.mark.parametrize("sizes", [(150, 70, 33), (1, 40, 21), (40, 1, 21), (40, 21, 1)])
def test_any_operands_give_the_product(
    faster: list[tuple[int, ...]], sizes: tuple[int, int, int], left: str, right: str
) -> None:
    torch.manual_seed(0)
    m, k, n = sizes
    a, b = MATRICES[left](m, k), MATRICES[right](k, n)
    wanted = (a.double() @ b.double()).float()
    torch.testing.assert_close(torch.mm(a, b), wanted, atol=1e-5, rtol=1e-5)
    assert faster
    assert torch.mm(a, b).is_contiguous()
    out = torch.full((m, n + 3), torch.nan)[:, :n]
    assert torch.mm(a, b, out=out) is out
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


class Watching(TorchDispatchMode):
    """Keeps the weights that oneDNN is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "linear_pointwise" in str(func):
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", MATRICES)
def test_it_is_never_given_a_weight_with_gaps(faster: list[tuple[int, ...]], kind: str) -> None:
    """It has no fast code for one: a thousand times the time."""
    inputs, weight = normal(40, 21), MATRICES[kind](33, 21)
    with Watching() as watching:
        found = cpu_matmul._linear(inputs, weight, None)
    torch.testing.assert_close(found, inputs @ weight.t())
    (given,) = watching.weights
    assert given.is_contiguous() or given.t().is_contiguous()
    if kind in ("as it is", "transposed"):
        assert given.data_ptr() == weight.data_ptr()  # nor is one copied without need


ADDED: dict[str, Call] = {
    "a row": lambda m, n: normal(n),
    "a row with gaps": lambda m, n: normal(2 * n)[::2],
    "one number": lambda m, n: normal(1).squeeze(),
    "one number for a row": lambda m, n: normal(1).expand(n),
    "a column": lambda m, n: normal(m, 1),
    "a row, as a matrix": lambda m, n: normal(1, n),
    "a matrix": normal,
    "a transposed matrix": lambda m, n: normal(n, m).t(),
    "a row again and again": lambda m, n: normal(n).expand(m, n),
}


@pytest.mark.parametrize("scales", [{}, {"beta": 0.5}, {"alpha": -2.0}, {"beta": 0, "alpha": 3}])
@pytest.mark.parametrize("left", ["as it is", "transposed"])
@pytest.mark.parametrize("added", ADDED)
def test_whatever_is_added_and_scaled(
    faster: list[tuple[int, ...]], added: str, left: str, scales: dict[str, float]
) -> None:
    torch.manual_seed(0)
    m, k, n = 90, 70, 33
    a, b, c = MATRICES[left](m, k), normal(k, n), ADDED[added](m, n)
    wanted = torch.addmm(c.double(), a.double(), b.double(), **scales).float()
    close: Call = lambda found: torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # noqa: E731
    close(torch.addmm(c, a, b, **scales))
    close(torch.addmm(c, a, b, **scales, out=torch.empty(m, n)))
    close(c.expand(m, n).clone().addmm_(a, b, **scales))


def test_without_rows_or_columns_nothing_is_asked_of_it(faster: list[tuple[int, ...]]) -> None:
    for m, k, n in [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)]:
        assert torch.equal(torch.mm(normal(m, k), normal(k, n)), torch.zeros(m, n))
        assert torch.equal(torch.addmm(torch.ones(n), normal(m, k), normal(k, n)), torch.ones(m, n))
    assert not faster


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.mm(normal(3, 4), normal(5, 6)),
        lambda: torch.mm(normal(3, 4), normal(4, 5).double()),
        lambda: torch.mm(normal(3), normal(3, 4)),
        lambda: torch.addmm(normal(7), normal(3, 4), normal(4, 5)),
        lambda: normal(5).addmm_(normal(3, 4), normal(4, 5)),
    ],
)
def test_a_mistake_has_pytorchs_words(faster: list[tuple[int, ...]], call: Call) -> None:
    with pytest.raises(RuntimeError) as ours:
        call()
    with cpu_matmul.pytorch_matmul(), pytest.raises(RuntimeError) as theirs:
        call()
    assert str(ours.value) == str(theirs.value)


def test_a_place_that_does_not_fit_is_pytorchs_to_grow(faster: list[tuple[int, ...]]) -> None:
    a, b, out = normal(40, 8), normal(8, 40), torch.empty(0)
    torch.testing.assert_close(torch.mm(a, b, out=out), a @ b)


def test_other_types_are_left_alone(faster: list[tuple[int, ...]]) -> None:
    for kind in (torch.double, torch.bfloat16, torch.complex64, torch.long):
        a, b = (normal(40, 40) * 9).to(kind), (normal(40, 40) * 9).to(kind)
        ours = a @ b
        with cpu_matmul.pytorch_matmul():
            assert torch.equal(ours, a @ b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.linear(normal(40, 8), normal(40, 8)).dtype == torch.bfloat16
    assert not faster


def test_small_products_are_left_alone(
    faster: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "FEWEST_PRODUCTS", 40**3 + 1)
    torch.mm(normal(40, 40), normal(40, 40))
    monkeypatch.setattr(cpu_matmul, "FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(cpu_matmul, "FEWEST_ROWS", 41)
    torch.mm(normal(40, 40), normal(40, 40))
    torch.mm(normal(400, 40).t()[:, :40], normal(40, 400))
    assert not faster


def test_however_many_rows_the_sizes_are_few(faster: list[tuple[int, ...]]) -> None:
    weight = normal(20, 10).requires_grad_()
    for rows in range(1, 400):
        F.linear(normal(rows, 10), weight).square().sum().backward()
    assert len(set(faster)) <= 2 * (2 + 4 + 4)  # pieces, what is left of more, and of less


@pytest.mark.parametrize("of", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(90, 12), (6, 15, 12), (0, 12)])
def test_gradients_are_those_of_double_precision(
    faster: list[tuple[int, ...]], shape: tuple[int, ...], of: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(12, 30), normal(*shape).requires_grad_(of[0])
    layer.requires_grad_(of[1])
    chosen = ([inputs] if of[0] else []) + ([*layer.parameters()] if of[1] else [])

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(inputs).sin().sum(), chosen)

    ours = gradients()
    assert faster or shape[0] == 0
    layer, inputs = layer.double(), inputs.detach().double().requires_grad_(of[0])
    chosen = ([inputs] if of[0] else []) + ([*layer.parameters()] if of[1] else [])
    for found, wanted in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(found, wanted.float(), atol=2e-5, rtol=1e-5)


def test_gradients_of_gradients(faster: list[tuple[int, ...]]) -> None:
    def penalty(a: Tensor, b: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad((a @ b).tanh().sum(), a, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), b)[0]

    torch.manual_seed(0)
    a, b = normal(40, 8).requires_grad_(), normal(8, 24).requires_grad_()
    wanted = penalty(a.double(), b.detach().double().requires_grad_())
    torch.testing.assert_close(penalty(a, b), wanted.float(), atol=1e-4, rtol=1e-4)
    assert len(faster) > 3


def test_without_gradients_too(faster: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(12, 30)
    with torch.inference_mode():
        found = layer(torch.ones(40, 12))
    assert faster
    torch.testing.assert_close(found, layer(torch.ones(40, 12)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_is_the_same_every_time(faster: list[tuple[int, ...]], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = normal(700, 512), normal(512, 300)
        first = a @ b, a.t() @ normal(700, 3).new_ones(700, 300)
        for _ in range(5):
            assert torch.equal(a @ b, first[0])
            assert torch.equal(a.t() @ a.new_ones(700, 300), first[1])
    finally:
        torch.set_num_threads(before)


def test_what_is_compiled_or_exported_does_not_see_it(faster: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(12, 30)
    graph = torch.export.export(layer, (normal(40, 12),)).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == [
        "aten.linear.default"
    ]


def test_a_forked_process_multiplies_on(faster: list[tuple[int, ...]]) -> None:
    a, b = normal(40, 8), normal(8, 24)
    wanted = a @ b
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(a @ b, wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_pytorchs_own_way_comes_back_and_goes(faster: list[tuple[int, ...]]) -> None:
    with cpu_matmul.pytorch_matmul():
        torch.mm(normal(40, 8), normal(8, 24))
        assert not faster
    torch.mm(normal(40, 8), normal(8, 24))
    assert faster


@pytest.mark.parametrize(
    ("maker", "capability", "gains"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, maker: str | None, capability: str, gains: bool
) -> None:
    monkeypatch.setattr(cpu_matmul, "_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert cpu_matmul._gains_here.__wrapped__() is gains


def test_a_pytorch_without_the_operator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "_maker", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert cpu_matmul._gains_here.__wrapped__() is False


def test_nothing_is_printed_when_it_begins() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from showtell.cpu_matmul import _override as o; o()",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_threads_that_begin_at_once_override_once(faster: list[tuple[int, ...]]) -> None:
    own = cpu_matmul._override
    made = []

    def slow() -> object:
        made.append(None)
        sleep(0.05)
        return own()

    with pytest.MonkeyPatch.context() as patch, cpu_matmul.pytorch_matmul():
        patch.setattr(cpu_matmul, "_override", slow)
        barrier = Barrier(2)

        def begin() -> bool:
            barrier.wait()
            return cpu_matmul.use_onednn_matmul()

        with ThreadPoolExecutor(2) as threads:
            begun = [threads.submit(begin) for _ in range(2)]
        assert all(each.result() for each in begun)
        assert len(made) == 1
        left, right = torch.randn(40, 3), torch.randn(3, 5)
        assert torch.allclose(left @ right, (left[:, :, None] * right).sum(1), atol=1e-5)
