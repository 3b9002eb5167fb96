"""Matrix products with full-precision accumulation, whatever the operands are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def operand_dtype(x: Tensor, full: torch.dtype) -> torch.dtype:
    """What matrix products read: x's dtype on a GPU, ``full`` (fp32 or fp64) elsewhere.

    Half precision gains nothing on most CPUs; there every block is converted as it is read.
    """
    low = x.dtype in (torch.bfloat16, torch.float16)
    return x.dtype if low and x.device.type == "cuda" else full


def product(a: Tensor, b: Tensor, dtype: torch.dtype, *, for_transpose: bool = False) -> Tensor:
    """``a @ b``, accumulated and rounded in ``dtype``.

    With ``for_transpose`` the result lies in memory column by column on a CPU: its transpose is
    then what :func:`accumulate` multiplies fastest.
    """
    if dtype != a.dtype:
        return torch.mm(a, b, out_dtype=dtype)
    if for_transpose and a.device.type == "cpu":
        return product(b.T, a.T, dtype).T
    return _onednn(a, b) if _suits_onednn(a) else torch.mm(a, b)


def store(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``out = a @ b``, accumulated in full precision and rounded once."""
    if out.stride(0) < out.stride(1):  # it lies column by column
        return store(out.T, b.T, a.T).T
    if out.dtype == a.dtype and not _suits_onednn(a):
        return torch.mm(a, b, out=out)
    narrower = out.dtype.itemsize < a.dtype.itemsize  # half precision on a CPU
    return out.copy_(product(a, b, a.dtype if narrower else out.dtype))


def accumulate(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``out += a @ b``, accumulated in full precision and rounded to ``out``'s dtype."""
    if out.dtype != a.dtype:
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.add_(_onednn(a, b)) if _suits_onednn(a) else out.addmm_(a, b)


def _suits_onednn(a: Tensor) -> bool:
    """Whether oneDNN multiplies faster than the BLAS behind ``torch.mm``.

    In fp32 on a CPU with AVX-512 it does (by a tenth to a fifth on AMD, where MKL does not use it),
    unless ``a`` is transposed: oneDNN's entry then copies it first. With AVX2 it is the slower one.
    """
    on_cpu = a.device.type == "cpu" and a.dtype == torch.float32
    return on_cpu and _HAS_ONEDNN and a.is_contiguous() and a.numel() > 0


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    # the operator that torch.compile's CPU backend calls for linear layers
    return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")


_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """No autocast and no TF32 on ``tensor``'s device: small variances do not survive them."""
    kind = tensor.device.type
    if kind == "meta":
        yield
        return
    tf32 = torch.backends.cuda.matmul.allow_tf32 if kind == "cuda" else False
    try:
        if tf32:
            torch.backends.cuda.matmul.allow_tf32 = False
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        if tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
