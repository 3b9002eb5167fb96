"""Gradients of ``vocab_mixture``: accumulators of the backward sweep and what follows it."""

from __future__ import annotations

import torch
from torch import Tensor

from .products import accumulate, store
from .statistics import VocabStats
from .sweep import Sweep

BLOCK_BYTES = 32 * 2**20
"""The correction of the weight's gradient works on pieces of about this size."""


class Block:
    """Gradients of one block of the vocabulary while rows are added to it."""

    def __init__(self, grads: Gradients, block: slice, operand: torch.dtype) -> None:
        self.grads, self.block = grads, block
        self.weight = grads.block_of(grads.weight, block, operand)
        self.table = self.weight if grads.tied else grads.block_of(grads.table, block, operand)
        self.column_sums = tuple(
            None if vector is None else vector[block]
            for vector in (grads.gamma, grads.beta, grads.bias)
        )
        self._fresh: set[int] = {id(self.weight), id(self.table)}

    def add_table(self, p: Tensor, g: Tensor) -> None:
        """A tile's p ``[R, K]`` and the upstream gradient ``[R, T]``."""
        if self.table is not None:
            self._into(self.table, p, g)

    def add(self, a: Tensor, x: Tensor, w: Tensor, rows: slice) -> None:
        """A tile's r∘a or dz ``[R, K]``."""
        if self.weight is not None:
            self._into(self.weight, a, x)
        if self.grads.x is not None:
            accumulate(self.grads.x[rows], a, w)

    def _into(self, out: Tensor, tile: Tensor, rows: Tensor) -> None:
        if id(out) in self._fresh:  # the first product overwrites: nothing is zeroed or read
            self._fresh.discard(id(out))
            store(out, tile.T, rows)
        else:
            accumulate(out, tile.T, rows)

    def close(self) -> None:
        """Round finished blocks into the gradients, or zero what nobody wrote."""
        for out, total in ((self.weight, self.grads.weight), (self.table, self.grads.table)):
            if out is None or total is None:
                continue
            if id(out) in self._fresh:
                out.zero_()
            if out.dtype != total.dtype:
                total[self.block] = out.to(total.dtype)


class Gradients:
    """Gradients of x, W, E, b, γ, β; those nobody wants are ``None``.

    The two large ones have their tensor's dtype, so a half-precision model gets no fp32 copy of
    V x D: a block is summed in full precision and rounded once, and the correction rounds it once
    more. With ``direct`` the products write a block themselves, one or two of them, and round it.
    """

    def __init__(self, x, weight, table, dtype, wanted, *, tied: bool, direct: bool) -> None:
        vocab = weight.shape[0]

        def vector(needed: bool) -> Tensor | None:
            return x.new_zeros(vocab, dtype=dtype) if needed else None

        self.dtype, self.tied, self.direct = dtype, tied, direct
        self.x = torch.zeros_like(x, dtype=dtype) if wanted[0] else None
        self.weight = weight.new_empty(weight.shape) if wanted[1] else None
        self.table = table.new_empty(table.shape) if wanted[2] and not tied else None
        self.bias, self.gamma, self.beta = (vector(need) for need in wanted[3:])
        self.s1 = x.new_zeros(x.shape[0], dtype=dtype)
        self.s2, self.z_hat = torch.zeros_like(self.s1), torch.zeros_like(self.s1)
        self.needs_sums = any(wanted[index] for index in (0, 1, 3))

    def block_of(self, total: Tensor | None, block: slice, operand) -> Tensor | None:
        """Where a block is summed: in the gradient itself if that is as exact."""
        if total is None:
            return None
        part = total[block]
        as_exact = part.dtype == self.dtype or (self.direct and part.dtype == operand)
        return part if as_exact else torch.empty_like(part, dtype=self.dtype)

    def row_sums(self, rows: slice) -> tuple[Tensor | None, ...]:
        """Where S1, S2 and Σẑ of some rows are summed."""
        if not self.needs_sums:
            return None, None, None
        return self.s1[rows], self.s2[rows], self.z_hat[rows]

    def row_means(self, rows: slice, vocab: int) -> tuple[Tensor, Tensor]:
        """S1/V and S2/V of some rows, for ``correct_tile``: dz then sums to 0 over the vocabulary.

        μ is rounded, so ẑ has a mean; it is taken from what is multiplied by S2/V.
        """
        slope = self.s2[rows] / vocab
        return (self.s1[rows] - slope * self.z_hat[rows]) / vocab, slope

    def add_target_sums(self, rows: slice, ids: Tensor, z_hat: Tensor, t: Tensor, call) -> None:
        """The target logits' shares of S1 and S2 of some rows."""
        a = t if call.gamma is None else t * call.gamma[ids].to(self.dtype)
        self.s1[rows] += a[rows].sum(-1)
        self.s2[rows] += (a * z_hat)[rows].sum(-1)

    def add_targets(self, ids: Tensor, z_hat: Tensor, t: Tensor, call: Sweep) -> None:
        """The target logits' own terms: ds gets t at each target, a few gathered rows in all."""
        xs = call.x.to(self.dtype)
        for index, z, ds in zip(ids.T, z_hat.T, t.T, strict=True):
            if self.beta is not None:
                self.beta.index_add_(0, index, ds)
            if self.gamma is not None:
                self.gamma.index_add_(0, index, ds * z)
            a = ds if call.gamma is None else ds * call.gamma[index].to(self.dtype)
            if call.rows.rstd is not None:
                a = a * call.rows.rstd
            if self.x is not None:
                self.x.addcmul_(a[:, None], call.weight[index].to(self.dtype))
            if self.weight is not None:
                self._add_rows(self.weight, index, a[:, None] * xs)
            if self.bias is not None:
                self.bias.index_add_(0, index, a)

    def _add_rows(self, total: Tensor, index: Tensor, rows: Tensor) -> None:
        if total.dtype == self.dtype:
            total.index_add_(0, index, rows)
            return
        # half precision: sum the rows of one id first, so that thousands of blanks are not lost
        ids, which = torch.unique(index, return_inverse=True)
        summed = rows.new_zeros(len(ids), rows.shape[1]).index_add_(0, which, rows)
        total[ids] = (total[ids].to(self.dtype) + summed).to(total.dtype)

    def correct(self, call: Sweep, stats: VocabStats, *, fixed: bool) -> None:
        """The LayerNorm's share of dx, dW and db: deferred rank-one and D x D terms."""
        xs, r = call.x.to(self.dtype), call.rows.rstd
        assert r is not None
        stats = VocabStats(*(s.to(self.dtype) for s in stats))
        vocab = call.weight.shape[0]
        if self.x is not None:
            self.x -= (r * self.s1)[:, None] * stats.mean
            moved = xs @ stats.covariance + stats.bias_covariance
            self.x -= (r * r * self.s2)[:, None] * moved
        if fixed:
            return
        q, u = r * r * self.s2 / vocab, r * self.s1 / vocab
        m = q @ xs
        if self.weight is not None:
            second = (xs * q[:, None]).T @ xs
            # (W − 1w̄ᵀ) M + 1 uᵀ without a centred copy of W: the constant row is collected first
            self._correct_weight(
                self.weight, call, second, u @ xs - stats.mean @ second, m, stats.bias_mean
            )
        if self.bias is not None:
            self.bias -= u.sum() + (call.weight.to(self.dtype) @ m - stats.mean @ m)
            self.bias -= (call.bias.to(self.dtype) - stats.bias_mean) * q.sum()

    def _correct_weight(self, total: Tensor, call, second, constant, m, bias_mean) -> None:
        weight = call.weight
        minus_second = -second
        rows = max(1, BLOCK_BYTES // (weight.shape[1] * self.dtype.itemsize))
        for start in range(0, weight.shape[0], rows):
            block = slice(start, start + rows)
            grad = total[block]
            part = grad if grad.dtype == self.dtype else grad.to(self.dtype)
            accumulate(part.sub_(constant), weight[block].to(self.dtype), minus_second)
            if call.bias is not None:
                part.addr_(call.bias[block].to(self.dtype) - bias_mean, m, alpha=-1)
            if part is not grad:
                grad.copy_(part)

    def results(self, like: tuple[Tensor | None, ...]) -> list[Tensor]:
        """The wanted ones, in order, in the dtypes of ``like``."""
        found = (self.x, self.weight, self.table, self.bias, self.gamma, self.beta)
        pairs = zip(found, like, strict=True)
        return [grad.to(t.dtype) for grad, t in pairs if grad is not None and t is not None]
