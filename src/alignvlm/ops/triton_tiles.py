"""``tiles.forward_tile`` and ``backward_tile`` as one fused pass each, in Triton.

Imported only by ``select``, so that ``import alignvlm`` needs no Triton. Shapes: R rows, K columns
of the vocabulary. A program owns some rows and walks over all columns: row sums stay in its
registers, and sums over rows go through one partial sum a program, so nothing depends on the order
in which programs run. Offsets are 64-bit, since R·K may exceed 2³¹.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from . import tiles
from .tiles import Columns, Rows, Sums

FORWARD_BLOCK = (4, 1024)
"""Rows of a program and columns at a time. Few rows: they are read twice, for the maximum and for
the exponential, and the second read should find them in cache."""
BACKWARD_BLOCK = (16, 256)
"""More rows, because every program writes partial sums over its rows."""


def forward_tile(
    z: Tensor, rows: Rows, columns: Columns, peak: Tensor, total: Tensor, operand: torch.dtype
) -> tuple[Tensor, Tensor]:
    """exp(s − new peak), ``[R, K]`` in ``operand``, and what earlier sums must be multiplied by.

    ``peak`` and ``total`` (``[R]``, the softmax's running maximum and sum) are updated, and ``z``
    (fp32, any strides) may be overwritten. ``total`` adds the exponentials before they are rounded.
    """
    if z.dtype != torch.float32:  # fp64 is for checks, not for speed
        return tiles.forward_tile(z, rows, columns, peak, total, operand)
    count, width = z.shape
    p = z if operand == z.dtype else torch.empty_like(z, dtype=operand)
    rescale = torch.empty_like(peak)
    if z.numel() == 0:
        return p, rescale.fill_(1)
    row_block, column_block = FORWARD_BLOCK
    with torch.cuda.device_of(z):
        _forward_kernel[(triton.cdiv(count, row_block),)](
            z, p, *_dense(*rows, *columns), peak, total, rescale, count, width,
            *z.stride(), *p.stride(), ROWS=row_block, COLUMNS=column_block, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return p, rescale


def backward_tile(
    z: Tensor,
    upstream: Tensor | None,
    rows: Rows,
    columns: Columns,
    lse: Tensor,
    offset: Tensor,
    sums: Sums,
    operand: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """p and r∘a of a tile in ``operand``, with ds = p∘(upstream − offset); adds to ``sums``.

    ``upstream`` may be overwritten, ``z`` (fp32, any strides) is not.
    """
    if z.dtype != torch.float32:
        return tiles.backward_tile(z, upstream, rows, columns, lse, offset, sums, operand)
    count, width = z.shape
    p = torch.empty((count, width), dtype=operand, device=z.device)
    reuse = upstream is not None and upstream.dtype == operand
    a = upstream if reuse else torch.empty_like(p)
    if z.numel() == 0:
        return p, a
    row_block, column_block = BACKWARD_BLOCK
    programs = triton.cdiv(count, row_block)
    vectors = (sums.gamma, sums.beta, sums.bias)
    wanted = [vector for vector in vectors if vector is not None]
    partial = z.new_empty(len(wanted), programs, width)
    pieces = iter(partial)
    with torch.cuda.device_of(z):
        _backward_kernel[(programs,)](
            z, upstream, p, a, *_dense(*rows, *columns, lse, offset), sums.s1, sums.s2,
            *(None if vector is None else next(pieces) for vector in vectors), count, width,
            *z.stride(), *(p if upstream is None else upstream).stride(), *p.stride(), *a.stride(),
            ROWS=row_block, COLUMNS=column_block, num_warps=8,
            enable_fp_fusion=True,
        )  # fmt: skip
    if wanted:
        torch._foreach_add_(wanted, list(partial.sum(1)))
    return p, a


def _dense(*vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if vector is None else vector.contiguous() for vector in vectors)


@triton.jit
def _vector(pointer, index, limit, default: tl.constexpr, SIZE: tl.constexpr):
    """``pointer[index]``, or the default everywhere if there is no vector."""
    if pointer is None:
        found = tl.full([SIZE], default, tl.float32)
    else:
        found = tl.load(pointer + index, mask=index < limit, other=default)
    return found


@triton.jit
def _offsets(row, column, row_stride, column_stride):
    return row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride


@triton.jit
def _logits(
    z, row, column, rows, columns, z_row, z_column, mu, rstd, bias, gamma, beta,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """ẑ, s, γ and which entries exist; without the LayerNorm μ = 0 and r = 1."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    z_hat = tl.load(z + _offsets(row, column, z_row, z_column), mask=inside, other=0.0)
    b = _vector(bias, column, columns, 0.0, COLUMNS)
    scale = _vector(gamma, column, columns, 1.0, COLUMNS)
    shift = _vector(beta, column, columns, 0.0, COLUMNS)
    z_hat = (z_hat + b[None, :] - mu[:, None]) * rstd[:, None]
    return z_hat, z_hat * scale[None, :] + shift[None, :], scale, inside


@triton.jit
def _forward_kernel(
    z, p, mu, rstd, bias, gamma, beta, peak, total, rescale, rows, columns,
    z_row, z_column, p_row, p_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    m = _vector(mu, row, rows, 0.0, ROWS)
    r = _vector(rstd, row, rows, 1.0, ROWS)
    old = tl.load(peak + row, mask=real, other=0.0)
    best = old
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        _, s, _, inside = _logits(
            z, row, column, rows, columns, z_row, z_column, m, r, bias, gamma, beta, COLUMNS
        )
        best = tl.maximum(best, tl.max(tl.where(inside, s, -float("inf")), 1))
    added = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        _, s, _, inside = _logits(
            z, row, column, rows, columns, z_row, z_column, m, r, bias, gamma, beta, COLUMNS
        )
        part = tl.where(inside, tl.exp(s - best[:, None]), 0.0)
        added += tl.sum(part, 1)
        tl.store(p + _offsets(row, column, p_row, p_column), part.to(p.dtype.element_ty), inside)
    shrink = tl.exp(old - best)
    before = tl.load(total + row, mask=real, other=0.0)
    tl.store(total + row, before * shrink + added, mask=real)
    tl.store(rescale + row, shrink, mask=real)
    tl.store(peak + row, best, mask=real)


@triton.jit
def _backward_kernel(
    z, upstream, p, a, mu, rstd, bias, gamma, beta, lse, offset, s1, s2,
    gamma_part, beta_part, bias_part, rows, columns,
    z_row, z_column, up_row, up_column, p_row, p_column, a_row, a_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    m = _vector(mu, row, rows, 0.0, ROWS)
    r = _vector(rstd, row, rows, 1.0, ROWS)
    norm = tl.load(lse + row, mask=real, other=0.0)
    shift = tl.load(offset + row, mask=real, other=0.0)
    sum_a = tl.zeros([ROWS], tl.float32)
    sum_az = tl.zeros([ROWS], tl.float32)
    place = tl.program_id(0).to(tl.int64) * columns
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        z_hat, s, scale, inside = _logits(
            z, row, column, rows, columns, z_row, z_column, m, r, bias, gamma, beta, COLUMNS
        )
        prob = tl.where(inside, tl.exp(s - norm[:, None]), 0.0)
        ds = prob * -shift[:, None]
        if upstream is not None:
            up = tl.load(upstream + _offsets(row, column, up_row, up_column), inside, other=0.0)
            ds = prob * (up - shift[:, None])
        weighted = ds * scale[None, :]
        moved = weighted * r[:, None]
        tl.store(p + _offsets(row, column, p_row, p_column), prob.to(p.dtype.element_ty), inside)
        tl.store(a + _offsets(row, column, a_row, a_column), moved.to(a.dtype.element_ty), inside)
        sum_a += tl.sum(weighted, 1)
        sum_az += tl.sum(weighted * z_hat, 1)
        here = column < columns
        if gamma_part is not None:
            tl.store(gamma_part + place + column, tl.sum(ds * z_hat, 0), mask=here)
        if beta_part is not None:
            tl.store(beta_part + place + column, tl.sum(ds, 0), mask=here)
        if bias_part is not None:
            tl.store(bias_part + place + column, tl.sum(moved, 0), mask=here)
    if s1 is not None:
        tl.store(s1 + row, tl.load(s1 + row, mask=real, other=0.0) + sum_a, mask=real)
    if s2 is not None:
        tl.store(s2 + row, tl.load(s2 + row, mask=real, other=0.0) + sum_az, mask=real)
