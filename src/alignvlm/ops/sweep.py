"""What the sweeps of the chunked op read."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Blocks
from .products import operand_dtype, product, store
from .select import select_tiles
from .statistics import statistics_dtype
from .tiles import Columns, Rows


def logits_dtype(x: Tensor) -> torch.dtype:
    """What kept logits are stored in: what the matrix products read."""
    return operand_dtype(x, statistics_dtype(x))


def room_for_logits(x: Tensor, vocab: int, kept: bool) -> Tensor:
    """An array for the kept logits, ``[N, V]``; empty if they are not kept.

    On a CPU it lies in memory column by column: gradients of the vocabulary's rows then multiply
    fastest (``products``).
    """
    if not kept:
        return x.new_empty(0, dtype=logits_dtype(x))
    return by_columns(x, x.shape[0], vocab, logits_dtype(x))


def by_columns(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """``[rows, columns]`` on the device of ``like``, uninitialised; column by column on a CPU."""
    if like.device.type == "cpu":
        return like.new_empty((columns, rows), dtype=dtype).T
    return like.new_empty((rows, columns), dtype=dtype)


class Sweep:
    """Everything the sweeps read; one instance forward and one backward.

    Attributes:
        kept: the logits ``[N, V]`` without the bias, or empty.
        filled: whether all of them are there.
        rows: μ and r of every row.
    """

    def __init__(self, x, weight, table, bias, gamma, beta, blocks, kept) -> None:
        self.dtype = statistics_dtype(x)
        self.operand = operand_dtype(x, self.dtype)
        self.x, self.weight, self.table = x, weight, table
        self.bias, self.gamma, self.beta = bias, gamma, beta
        self.blocks = Blocks(*blocks)
        self.tiles = select_tiles(x.device)
        self.xs = x.to(self.operand)
        self.rows = Rows(None, None)
        self.kept, self.filled = kept, False

    def normalise(self, moments: Tensor, eps: float) -> None:
        """Take μ and r from mean and variance of every row, ``[2, N]``; none: no LayerNorm."""
        if moments.ndim == 2:
            self.rows = Rows(moments[0], torch.rsqrt(moments[1] + eps))

    def full(self, vector: Tensor | None, block: slice) -> Tensor | None:
        return None if vector is None else vector[block].to(self.dtype)

    def columns(self, block: slice) -> Columns:
        return Columns(*(self.full(v, block) for v in (self.bias, self.gamma, self.beta)))

    def vocabulary(self):
        """Yield each block's slice."""
        vocab, columns = self.weight.shape[0], self.blocks.columns
        for start in range(0, vocab, columns):
            yield slice(start, min(start + columns, vocab))

    def row_slices(self) -> list[slice]:
        count, rows = len(self.xs), self.blocks.rows
        return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]

    def logits(self, block: slice, rows: slice, *, for_transpose: bool = False) -> Tensor:
        """A tile ``[R, K]`` of the logits without the bias: computed, and kept if all are."""
        w = self.weight[block].to(self.operand)
        if not self.blocks.kept:
            return product(self.xs[rows], w.T, self.dtype, for_transpose=for_transpose)
        place = self.kept[rows, block]
        return place if self.filled else store(place, self.xs[rows], w.T)

    def target_z_hat(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Clamped ids and ẑ (z without the LayerNorm) at each target, ``[N, M]``."""
        ids = targets.clamp_min(0)
        if self.blocks.kept:
            z = self.kept.gather(1, ids).to(self.dtype)
        else:
            xs = self.x.to(self.dtype)
            columns = [(xs * self.weight[column].to(self.dtype)).sum(-1) for column in ids.T]
            z = torch.stack(columns, -1) if columns else xs.new_zeros(ids.shape)
        if self.bias is not None:
            z = z + self.bias[ids].to(self.dtype)
        mu, rstd = self.rows
        if mu is not None and rstd is not None:
            z = (z - mu[:, None]) * rstd[:, None]
        return ids, z

    def target_logits(self, targets: Tensor) -> Tensor:
        ids, s = self.target_z_hat(targets)
        if self.gamma is not None:
            s = s * self.gamma[ids].to(self.dtype)
        if self.beta is not None:
            s = s + self.beta[ids].to(self.dtype)
        return s * (targets >= 0)
