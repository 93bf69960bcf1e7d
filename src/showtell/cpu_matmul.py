"""Matrix products on a CPU by oneDNN instead of MKL, where that is faster.

In float32 PyTorch multiplies with Intel's MKL, which leaves half of AVX-512 unused on processors of
other vendors. oneDNN, which PyTorch includes for convolutions, uses what the processor supports. So
on processors of other vendors with AVX-512, ``use_onednn_matmul`` overrides the kernels of
PyTorch's own operators; all layers, their gradients and calls of ``torch.mm`` become faster.
Elsewhere, and for arguments that do not qualify, PyTorch's kernels are used.

Dimension key: a product is (M, K) x (K, N).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# Least multiplications and rows for which oneDNN is faster: a call of it costs 10 microseconds or
# more, one of MKL two.
FEWEST_PRODUCTS, FEWEST_ROWS = 2**21, 8
# oneDNN compiles a kernel of half a megabyte for each size, and every batch has another number of
# words. So products are cut into pieces of these numbers of rows, and the last one is padded to a
# multiple of STEP, or of FINE_STEP in products smaller than any piece, such as recurrent steps.
PIECES, STEP, FINE_STEP = (2048, 1024, 512, 256), 64, 16

Kernel = Callable[..., Tensor]

_library: Any = None  # the override is in effect as long as it lives
_lock = Lock()  # concurrent overrides would take each other's kernels for PyTorch's


def use_onednn_matmul() -> bool:
    """Multiply with oneDNN from now on where it is faster, in the whole process.

    Returns:
        Whether kernels are overridden.
    """
    global _library
    with _lock:
        if _library is None and _gains_here():
            _library = _override()
        return _library is not None


@contextmanager
def pytorch_matmul() -> Iterator[None]:
    """Restore PyTorch's kernels within the block; no other thread may multiply meanwhile."""
    global _library
    with _lock:
        was_used, _library = _library is not None, None
    try:
        yield
    finally:
        with _lock:
            _library = None  # ends an override begun inside, so that PyTorch's kernels are found
            if was_used:
                _library = _override()


@cache
def _gains_here() -> bool:
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _maker() not in (None, "GenuineIntel")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # there is no public function
        and hasattr(torch.library, "get_kernel")  # missing in older versions
    )


def _maker() -> str | None:
    """The processor's vendor id from /proc/cpuinfo, or None if unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split()[-1] for line in lines if line.startswith("vendor_id")), None)


def _override() -> Any:
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    kernels: dict[str, Kernel] = {
        "mm": _mm,
        "mm.out": _mm_out,
        "addmm": _addmm,
        "addmm.out": _addmm_out,
        "addmm_": _addmm_in_place,
    }
    for name, kernel in kernels.items():
        own = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
        library.impl(name, partial(kernel, own), "CPU", with_keyset=True)
    return library


# The kernels. ``own`` is PyTorch's kernel, which takes the same arguments.


def _mm(own: Kernel, keys: Any, left: Tensor, right: Tensor) -> Tensor:
    if not _fits(left, right):
        return own(keys, left, right)
    return _multiply(left, right, None, left.new_empty(len(left), right.shape[1]))


def _mm_out(own: Kernel, keys: Any, left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
    if not (_fits(left, right) and _takes(out, left, right)):
        return own(keys, left, right, out=out)
    return _multiply(left, right, None, out)


def _addmm(
    own: Kernel, keys: Any, added: Tensor, left: Tensor, right: Tensor, **scales: float
) -> Tensor:
    if not (_fits(left, right) and _adds(added, left, right, **scales)):
        return own(keys, added, left, right, **scales)
    return _multiply(left, right, added, left.new_empty(len(left), right.shape[1]))


def _addmm_out(
    own: Kernel,
    keys: Any,
    added: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    out: Tensor,
    **scales: float,
) -> Tensor:
    fits = _fits(left, right) and _adds(added, left, right, **scales)
    if not (fits and _takes(out, added, left, right)):
        return own(keys, added, left, right, out=out, **scales)
    return _multiply(left, right, added, out)


def _addmm_in_place(
    own: Kernel, keys: Any, added: Tensor, left: Tensor, right: Tensor, **scales: float
) -> Tensor:
    fits = _fits(left, right) and _adds(added, left, right, **scales)
    if not (fits and _takes(added, left, right)):
        return own(keys, added, left, right, **scales)
    return _multiply(left, right, added, added)


def _fits(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN pays for this product; invalid shapes are left to PyTorch to reject."""
    if left.dtype is not torch.float32 or right.dtype is not torch.float32:
        return False
    if left.dim() != 2 or right.dim() != 2:
        return False
    (rows, inner), columns = left.shape, right.shape[1]
    cut = inner if _is_transposed(left) else rows
    return (
        cut >= FEWEST_ROWS and rows * inner * columns >= FEWEST_PRODUCTS and right.shape[0] == inner
    )


def _adds(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> bool:
    """Whether ``added`` is a bias (N,) or a matrix (M, N), without scales."""
    shapes = (right.shape[1:], (len(left), right.shape[1]))
    return beta == alpha == 1 and added.dtype is torch.float32 and added.shape in shapes


def _takes(out: Tensor, *factors: Tensor) -> bool:
    """Whether the product can be written to ``out`` in pieces: it shares no memory with factors."""
    left, right = factors[-2:]
    if out.dtype is not torch.float32 or out.shape != (len(left), right.shape[1]):
        return False
    memory = out.untyped_storage().data_ptr()
    return all(factor.untyped_storage().data_ptr() != memory for factor in factors)


def _is_transposed(left: Tensor) -> bool:
    """Whether ``left`` is a transpose, as in a weight gradient, whose K is the batch."""
    return left.stride(0) == 1 and left.stride(1) > 1


def _multiply(left: Tensor, right: Tensor, added: Tensor | None, out: Tensor) -> Tensor:
    """Write ``left`` (M, K) @ ``right`` (K, N) + ``added``, (N,) or (M, N), to ``out``."""
    if _is_transposed(left):
        return _sum_pieces(left, right, added, out)
    right = right if right.is_contiguous() else right.t().contiguous().t()  # once for all pieces
    row, matrix = (None, added) if added is not None and added.dim() == 2 else (added, None)
    for start, end, size in _pieces(len(left)):
        piece = _linear(_filled(left[start:end], size), right.t(), row)[: end - start]
        if matrix is None:
            out[start:end].copy_(piece)
        else:
            torch.add(piece, matrix[start:end], out=out[start:end])
    return out


def _sum_pieces(left: Tensor, right: Tensor, added: Tensor | None, out: Tensor) -> Tensor:
    """Like ``_multiply``, but in pieces along K."""
    for start, end, size in _pieces(len(right)):
        rows, columns = _filled(left.t()[start:end], size), _filled(right[start:end], size)
        piece = _linear(rows.t(), columns.t(), None)
        if start:
            out.add_(piece)
        elif added is None:
            out.copy_(piece)
        else:
            torch.add(piece, added, out=out)
    return out


def _pieces(rows: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, size) of each piece of ``rows``; the last is padded to ``size`` rows."""
    start = 0
    step = FINE_STEP if rows < PIECES[-1] else STEP
    while start < rows:
        left = rows - start
        size = next((size for size in PIECES if size <= left), -(-left // step) * step)
        end = min(start + size, rows)
        yield start, end, size
        start = end


def _filled(rows: Tensor, size: int) -> Tensor:
    """``rows`` padded with zeros to ``size`` rows."""
    return rows if len(rows) == size else pad(rows, (0, 0, 0, size - len(rows)))


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` by oneDNN, with contiguous bias and weight.

    The operator ignores a bias's strides, and for a weight with gaps, such as some columns of a
    matrix, it has no fast code and takes a thousand times as long.
    """
    bias = None if bias is None else bias.contiguous()
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product
