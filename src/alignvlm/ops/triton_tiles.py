"""The functions of ``tiles`` as one fused pass each, in Triton.

Imported only by ``select``, so that ``import alignvlm`` needs no Triton. Shapes: R rows, K columns
of the vocabulary. A program owns some rows and walks over all columns, or over a segment of them:
enough programs to fill a GPU. Sums go through one partial sum a program, so nothing depends on the
order in which programs run. Offsets are 64-bit, since R·K may exceed 2³¹. Logits may be fp32, bf16
or fp16; fp64 is for checks, not for speed, and takes the plain functions.
"""

# a kernel is launched as kernel[grid](...), and its type does not say so
# pyright: reportIndexIssue=false

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
STATISTICS_BLOCK = (4, 512)
"""Every entry of the block has a running mean of its own, in registers."""
SEGMENT = 2048
"""Columns that a program of the backward kernels walks over."""


def forward_tile(
    z: Tensor, rows: Rows, columns: Columns, peak: Tensor, total: Tensor, operand: torch.dtype
) -> tuple[Tensor, Tensor]:
    """exp(s − new peak), ``[R, K]`` in ``operand``, and what earlier sums must be multiplied by.

    ``peak`` and ``total`` (``[R]``, the softmax's running maximum and sum) are updated. ``z`` has
    any strides. ``total`` adds the exponentials before they are rounded.
    """
    if z.dtype == torch.float64:
        return tiles.forward_tile(z, rows, columns, peak, total, operand)
    count, width = z.shape
    p = torch.empty_like(z, dtype=operand)
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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """p and r∘a of a tile in ``operand``, with ds = p∘(upstream − offset); adds to ``sums``.

    ``upstream`` may be overwritten; it, ``z`` and ``out`` have any strides. ``out``: where r∘a
    goes, ``[R, K]`` in ``operand``.
    """
    if z.dtype == torch.float64:
        return tiles.backward_tile(z, upstream, rows, columns, lse, offset, sums, operand, out)
    count, width = z.shape
    p = torch.empty((count, width), dtype=operand, device=z.device)
    if out is None:
        reuse = upstream is not None and upstream.dtype == operand
        out = upstream if reuse else torch.empty_like(p)
    assert out is not None
    if z.numel() == 0:
        return p, out
    grid = _grid(count, width)
    over_columns = _Partial((sums.s1, sums.s2, sums.z_hat), grid[1])
    over_rows = _Partial((sums.gamma, sums.beta, sums.bias), grid[0])
    with torch.cuda.device_of(z):
        _backward_kernel[grid](
            z, upstream, p, out, *_dense(*rows, *columns, lse, offset), *over_columns.pieces,
            *over_rows.pieces, count, width, *z.stride(),
            *(p if upstream is None else upstream).stride(), *p.stride(), *out.stride(),
            SEGMENT=SEGMENT, ROWS=BACKWARD_BLOCK[0], COLUMNS=BACKWARD_BLOCK[1], num_warps=8,
            enable_fp_fusion=True,
        )  # fmt: skip
    over_columns.add()
    over_rows.add()
    return p, out


def statistics_tile(z: Tensor, bias: Tensor | None, seen: int, mean: Tensor, moved: Tensor) -> None:
    """Add a tile to the mean over ``seen`` columns, and to Σ (z + b − mean)², both ``[R]``."""
    if z.dtype == torch.float64:
        return tiles.statistics_tile(z, bias, seen, mean, moved)
    row_block, column_block = STATISTICS_BLOCK
    if z.numel():
        with torch.cuda.device_of(z):
            _statistics_kernel[(triton.cdiv(len(z), row_block),)](
                z, *_dense(bias), mean, moved, float(seen), *z.shape, *z.stride(),
                ROWS=row_block, COLUMNS=column_block, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return None


def correct_tile(
    z: Tensor,
    a: Tensor,
    rows: Rows,
    bias: Tensor | None,
    s1: Tensor,
    s2: Tensor,
    sums: Tensor | None,
) -> Tensor:
    """dz = r (a − s1 − ẑ s2) in the place of r∘a, with the row's means of a and a∘ẑ.

    ``sums``: Σ_n dz, ``[K]``, is added to it.
    """
    if z.dtype == torch.float64:
        return tiles.correct_tile(z, a, rows, bias, s1, s2, sums)
    if z.numel() == 0:
        return a
    grid = _grid(*z.shape)
    over_rows = _Partial((sums,), grid[0])
    with torch.cuda.device_of(z):
        _correct_kernel[grid](
            z, a, *_dense(*rows, bias, s1, s2), *over_rows.pieces, *z.shape, *z.stride(),
            *a.stride(), SEGMENT=SEGMENT, ROWS=BACKWARD_BLOCK[0], COLUMNS=BACKWARD_BLOCK[1],
            num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    over_rows.add()
    return a


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return triton.cdiv(rows, BACKWARD_BLOCK[0]), triton.cdiv(columns, SEGMENT)


class _Partial:
    """Partial sums of the vectors that are wanted, one row ``[len(vector)]`` a program."""

    def __init__(self, vectors: tuple[Tensor | None, ...], programs: int) -> None:
        self.wanted = [vector for vector in vectors if vector is not None]
        self.sums = [vector.new_empty(programs, len(vector)) for vector in self.wanted]
        found = iter(self.sums)
        self.pieces = [None if vector is None else next(found) for vector in vectors]

    def add(self) -> None:
        """Add them up, in a fixed order."""
        if self.wanted:
            sums = [partial.sum(0) for partial in self.sums]
            torch._foreach_add_(self.wanted, sums)  # pyright: ignore[reportPrivateImportUsage]


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
    z, upstream, p, a, mu, rstd, bias, gamma, beta, lse, offset, s1, s2, s0,
    gamma_part, beta_part, bias_part, rows, columns,
    z_row, z_column, up_row, up_column, p_row, p_column, a_row, a_column,
    SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    m = _vector(mu, row, rows, 0.0, ROWS)
    r = _vector(rstd, row, rows, 1.0, ROWS)
    norm = tl.load(lse + row, mask=real, other=0.0)
    shift = tl.load(offset + row, mask=real, other=0.0)
    sum_a = tl.zeros([ROWS], tl.float32)
    sum_az = tl.zeros([ROWS], tl.float32)
    sum_z = tl.zeros([ROWS], tl.float32)
    place = tl.program_id(0).to(tl.int64) * columns
    first = tl.program_id(1) * SEGMENT
    for start in range(first, tl.minimum(first + SEGMENT, columns), COLUMNS):
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
        if s0 is not None:
            sum_z += tl.sum(tl.where(inside, z_hat, 0.0), 1)
        here = column < columns
        if gamma_part is not None:
            tl.store(gamma_part + place + column, tl.sum(ds * z_hat, 0), mask=here)
        if beta_part is not None:
            tl.store(beta_part + place + column, tl.sum(ds, 0), mask=here)
        if bias_part is not None:
            tl.store(bias_part + place + column, tl.sum(moved, 0), mask=here)
    mine = tl.program_id(1) * rows + row
    if s1 is not None:
        tl.store(s1 + mine, sum_a, mask=real)
    if s2 is not None:
        tl.store(s2 + mine, sum_az, mask=real)
    if s0 is not None:
        tl.store(s0 + mine, sum_z, mask=real)


@triton.jit
def _statistics_kernel(
    z, bias, mean, moved, seen, rows, columns, z_row, z_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Welford's update in every entry of the block; entries are merged once, at the end."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    middle = tl.zeros([ROWS, COLUMNS], tl.float32)
    spread = tl.zeros([ROWS, COLUMNS], tl.float32)
    count = 0.0
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < columns)[None, :]
        value = tl.load(z + _offsets(row, column, z_row, z_column), mask=inside, other=0.0)
        value = value + _vector(bias, column, columns, 0.0, COLUMNS)[None, :]
        count += 1.0
        step = tl.where(inside, value - middle, 0.0)
        middle += step * (1.0 / count)
        spread += step * (value - middle)
    held = ((columns + COLUMNS - 1 - tl.arange(0, COLUMNS)) // COLUMNS).to(tl.float32)[None, :]
    own = tl.sum(middle * held, 1) / columns
    apart = middle - own[:, None]
    added = tl.sum(spread + held * apart * apart, 1)
    before = tl.load(mean + row, mask=real, other=0.0)
    step = own - before
    share = columns / (seen + columns)
    total = tl.load(moved + row, mask=real, other=0.0) + added + step * step * (seen * share)
    tl.store(mean + row, before + step * share, mask=real)
    tl.store(moved + row, total, mask=real)


@triton.jit
def _correct_kernel(
    z, a, mu, rstd, bias, s1, s2, bias_part, rows, columns,
    z_row, z_column, a_row, a_column,
    SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = _vector(mu, row, rows, 0.0, ROWS)
    r = _vector(rstd, row, rows, 1.0, ROWS)
    shift = r * _vector(s1, row, rows, 0.0, ROWS)
    slope = r * _vector(s2, row, rows, 0.0, ROWS)
    place = tl.program_id(0).to(tl.int64) * columns
    first = tl.program_id(1) * SEGMENT
    for start in range(first, tl.minimum(first + SEGMENT, columns), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        z_hat, _, _, inside = _logits(
            z, row, column, rows, columns, z_row, z_column, m, r, bias, None, None, COLUMNS
        )
        target = a + _offsets(row, column, a_row, a_column)
        dz = tl.load(target, mask=inside, other=0.0) - shift[:, None] - z_hat * slope[:, None]
        tl.store(target, dz.to(a.dtype.element_ty), mask=inside)
        if bias_part is not None:
            dz = tl.where(inside, dz, 0.0)
            tl.store(bias_part + place + column, tl.sum(dz, 0), mask=column < columns)
