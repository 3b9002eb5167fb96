"""What both sweeps of the chunked op read."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Blocks
from .products import operand_dtype
from .select import select_tiles
from .statistics import VocabStats, statistics_dtype
from .tiles import Columns, Rows


class Sweep:
    """Everything both sweeps read; one instance a sweep."""

    def __init__(self, x, weight, table, bias, gamma, beta, stats, eps, blocks) -> None:
        self.dtype = statistics_dtype(x)
        self.operand = operand_dtype(x, self.dtype)
        self.x, self.weight, self.table = x, weight, table
        self.bias, self.gamma, self.beta = bias, gamma, beta
        self.blocks = Blocks(*blocks)
        self.tiles = select_tiles(x.device)
        self.xs = x.to(self.operand)
        self.rows = Rows(None, None)
        if stats:
            mu, variance = VocabStats(*stats).moments(x.to(self.dtype))
            self.rows = Rows(mu, torch.rsqrt(variance + eps))

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

    def room_for_logits(self) -> Tensor:
        vocab = self.weight.shape[0] if self.blocks.kept else 0
        return self.x.new_empty((len(self.xs) * vocab,), dtype=self.dtype)

    def kept_tile(self, kept: Tensor, block: slice, rows: slice) -> Tensor | None:
        """Where a tile of logits is kept, ``[R, K]``; each lies in one piece, by columns."""
        if not self.blocks.kept:
            return None
        count, columns = rows.stop - rows.start, block.stop - block.start
        start = block.start * len(self.xs) + rows.start * columns
        return kept[start : start + count * columns].view(columns, count).T

    def target_z_hat(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Clamped ids and ẑ (z without the LayerNorm) at each target, ``[N, M]``."""
        ids = targets.clamp_min(0)
        xs = self.x.to(self.dtype)
        columns = [(xs * self.weight[column].to(self.dtype)).sum(-1) for column in ids.T]
        z = torch.stack(columns, -1) if columns else xs.new_zeros(ids.shape)
        if self.bias is not None:
            z = z + self.bias[ids].to(self.dtype)
        if self.rows.mu is not None:
            z = (z - self.rows.mu[:, None]) * self.rows.rstd[:, None]
        return ids, z

    def target_logits(self, targets: Tensor) -> Tensor:
        ids, s = self.target_z_hat(targets)
        if self.gamma is not None:
            s = s * self.gamma[ids].to(self.dtype)
        if self.beta is not None:
            s = s + self.beta[ids].to(self.dtype)
        return s * (targets >= 0)
