"""``vocab_mixture`` streamed over the vocabulary: exact, one sweep forward and one backward.

Shapes: N rows, V vocabulary, D width, K a block of the vocabulary. Nothing of size N x V exists;
the largest temporary is N x K. Logits are recomputed in the backward sweep.

With ẑ = (z − μ) r, s = γẑ + β, p = softmax(s), o = pᵀE, and upstream gradients g (of o),
h (of the logsumexp) and t (of the target logits)::

    ds = p ∘ (E g − g·o + h) + onehot(target) t        dE = pᵀ g      dβ = Σ_n ds   dγ = Σ_n ds∘ẑ
    a = γ∘ds       S1 = Σ_v a       S2 = Σ_v a∘ẑ
    dz = r (a − S1/V − ẑ S2/V)

    Σ_v ẑ_v w_v = r V (C x + c), so with statistics of the streamed rows themselves
    dx = r Wᵀa − r S1 w̄ − r² S2 (C x + c)
    dW = aᵀ(r x) − 1 (Σ_n r S1/V x)ᵀ − (W − 1w̄ᵀ) M − (b − b̄) mᵀ,   M = Σ_n q x xᵀ, m = Σ_n q x,
    db = Σ_n r a − Σ_n r S1/V − (W − 1w̄ᵀ) m − (b − b̄) Σ_n q,        q = r² S2/V

so the LayerNorm's contribution is a D x D correction after the sweep. dx keeps the same form for
given statistics; dW and db then lose their corrections.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import VocabMixture
from .statistics import VocabStats, statistics_dtype, vocab_stats, without_autocast

BLOCK_BYTES = 16 * 2**20
"""A block of logits is kept near this size, so that it stays in cache between its two uses."""


def default_chunk_size(rows: int, vocab: int, itemsize: int) -> int:
    """Vocabulary rows per block: a multiple of 64 between 512 and 16,384, at most ``vocab``."""
    fitting = BLOCK_BYTES // (max(rows, 1) * itemsize) // 64 * 64
    return min(vocab, max(512, min(fitting, 16384)))


class _Layout(NamedTuple):
    """What does not change within a call."""

    chunk: int
    normalize: bool
    eps: float
    dtype: torch.dtype
    fixed_stats: bool


def chunked_vocab_mixture(
    x: Tensor,
    weight: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    normalize: bool,
    eps: float,
    stats: VocabStats | None,
    targets: Tensor | None,
    chunk_size: int | None = None,
) -> VocabMixture:
    """See :func:`alignvlm.ops.vocab_mixture`; ``x`` is ``[N, D]``, ``targets`` ``[N, K]``."""
    dtype = statistics_dtype(x)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    chunk = chunk_size or default_chunk_size(x.shape[0], weight.shape[0], dtype.itemsize)
    layout = _Layout(chunk, normalize, eps, dtype, stats is not None)
    if normalize and stats is None:
        stats = vocab_stats(weight.detach(), None if bias is None else bias.detach())
    with without_autocast(x):
        output, lse, target_logits = _ChunkedVocabMixture.apply(
            x, weight, table, bias, norm_weight, norm_bias, targets, stats, layout
        )
    return VocabMixture(output, lse, target_logits)


def _moments(x: Tensor, stats: VocabStats | None, eps: float) -> tuple[Tensor, Tensor]:
    """μ and r = (σ² + eps)^-½ per row; 0 and 1 without the LayerNorm."""
    if stats is None:
        return x.new_zeros(x.shape[0]), x.new_ones(x.shape[0])
    mu, variance = stats.moments(x)
    return mu, torch.rsqrt(variance + eps)


class _ChunkedVocabMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, table, bias, gamma, beta, targets, stats, layout):
        dtype, chunk = layout.dtype, layout.chunk
        rows, vocab = x.shape[0], weight.shape[0]
        xs = x.to(dtype)
        mu, r = _moments(xs, stats, layout.eps)
        peak = xs.new_full((rows,), -torch.inf)
        total = xs.new_zeros(rows)
        mixture = None if table is None else xs.new_zeros(rows, table.shape[1])
        for start in range(0, vocab, chunk):
            block = slice(start, min(start + chunk, vocab))
            s, _ = _block_logits(xs, weight, bias, gamma, beta, mu, r, block)
            new_peak = torch.maximum(peak, s.amax(-1))
            rescale = torch.exp(peak - new_peak)
            p = s.sub_(new_peak[:, None]).exp_()
            total.mul_(rescale).add_(p.sum(-1))
            if mixture is not None:
                mixture.mul_(rescale[:, None]).addmm_(p, table[block].to(dtype))
            peak = new_peak
        lse = peak + total.log()
        if mixture is not None:
            mixture /= total[:, None]
        target_logits = None
        if targets is not None:
            target_logits = _target_logits(xs, weight, bias, gamma, beta, mu, r, targets)
        ctx.save_for_backward(
            x, weight, table, bias, gamma, beta, targets, mixture, mu, r, lse, *(stats or ())
        )
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        return None if mixture is None else mixture.to(table.dtype), lse, target_logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g, h, t):
        with without_autocast(ctx.saved_tensors[0]):
            return _ChunkedVocabMixture._backward(ctx, g, h, t)

    @staticmethod
    def _backward(ctx, g, h, t):
        saved = ctx.saved_tensors
        x, weight, table, bias, gamma, beta, targets, mixture, mu, r, lse = saved[:11]
        stats = VocabStats(*saved[11:]) if len(saved) > 11 else None
        needs = ctx.needs_input_grad[:6]
        layout, dtype = ctx.layout, ctx.layout.dtype
        vocab = weight.shape[0]
        xs = x.to(dtype)
        g = None if g is None else g.to(dtype)
        # d logits = p * (E g - offset) + onehot(target) t
        offset = xs.new_zeros(xs.shape[0]) if g is None else (g * mixture).sum(-1)
        if h is not None:
            offset = offset - h.to(dtype)
        # one buffer serves a tied table: its gradient is the sum of both roles
        tied = table is weight and needs[1]
        grads = _Gradients(xs, weight, None if g is None else table, bias, needs, tied)
        scaled_x = xs * r[:, None]
        for start in range(0, vocab, layout.chunk):
            block = slice(start, min(start + layout.chunk, vocab))
            s, z_hat = _block_logits(xs, weight, bias, gamma, beta, mu, r, block)
            p = s.sub_(lse[:, None]).exp_()
            if g is None:
                ds = -offset[:, None] * p
            else:
                if grads.table is not None:
                    grads.table[block] += p.T @ g
                ds = (g @ table[block].to(dtype).T).sub_(offset[:, None]).mul_(p)
            if t is not None:
                _add_targets(ds, targets, t.to(dtype), block)
            grads.add_block(block, ds, z_hat, weight, gamma, scaled_x, r, layout.normalize)
        if layout.normalize:
            grads.correct(xs, weight, bias, r, stats, fixed=layout.fixed_stats)
        return *grads.results(x, weight, table, bias, gamma, beta, tied), None, None, None


class _Gradients:
    """Accumulators of the backward sweep; those nobody needs are ``None``."""

    def __init__(self, xs, weight, table, bias, needs, tied) -> None:
        vocab = weight.shape[0]

        def vector(wanted: bool) -> Tensor | None:
            return xs.new_zeros(vocab) if wanted else None

        self.needs = needs
        self.x = torch.zeros_like(xs) if needs[0] else None
        self.weight = xs.new_zeros(weight.shape) if needs[1] else None
        if tied:
            self.table = self.weight if table is not None else None
        else:
            wanted = needs[2] and table is not None
            self.table = xs.new_zeros(table.shape) if wanted else None
        self.bias, self.gamma, self.beta = vector(needs[3]), vector(needs[4]), vector(needs[5])
        self.s1 = xs.new_zeros(xs.shape[0])
        self.s2 = xs.new_zeros(xs.shape[0])

    def add_block(self, block, ds, z_hat, weight, gamma, scaled_x, r, normalize) -> None:
        if self.beta is not None:
            self.beta[block] = ds.sum(0)
        if self.gamma is not None:
            self.gamma[block] = (ds * z_hat).sum(0)
        if self.x is None and self.weight is None and self.bias is None:
            return
        a = ds if gamma is None else ds.mul_(gamma[block].to(ds.dtype))
        if normalize:
            self.s1 += a.sum(-1)
            self.s2 += (a * z_hat).sum(-1)
        if self.x is not None:
            self.x.addmm_(a, weight[block].to(a.dtype))
        if self.weight is not None:
            self.weight[block].addmm_(a.T, scaled_x)
        if self.bias is not None:
            self.bias[block] = a.T @ r

    def correct(self, xs, weight, bias, r, stats: VocabStats, *, fixed: bool) -> None:
        """The LayerNorm's share of dx, dW and db: deferred rank-one and D x D terms."""
        vocab = weight.shape[0]
        stats = VocabStats(*(s.to(xs.dtype) for s in stats))
        if self.x is not None:
            self.x.mul_(r[:, None])
            self.x -= (r * self.s1)[:, None] * stats.mean
            moved = xs @ stats.covariance + stats.bias_covariance
            self.x -= (r * r * self.s2)[:, None] * moved
        if fixed:
            return
        q = r * r * self.s2 / vocab
        u = r * self.s1 / vocab
        m = q @ xs
        if self.weight is not None:
            second = (xs * q[:, None]).T @ xs
            # (W - 1 w̄ᵀ) M + 1 uᵀ without a centred copy of W: the constant row is collected first
            self.weight.sub_(u @ xs - stats.mean @ second)
            for start in range(0, vocab, 8192):
                block = slice(start, start + 8192)
                self.weight[block].addmm_(weight[block].to(xs.dtype), second, alpha=-1)
                if bias is not None:
                    centred = bias[block].to(xs.dtype) - stats.bias_mean
                    self.weight[block].addr_(centred, m, alpha=-1)
        if self.bias is not None:
            self.bias -= u.sum() + (weight.to(xs.dtype) @ m - stats.mean @ m)
            self.bias -= (bias.to(xs.dtype) - stats.bias_mean) * q.sum()

    def results(self, x, weight, table, bias, gamma, beta, tied) -> tuple[Tensor | None, ...]:
        def like(grad: Tensor | None, tensor: Tensor | None) -> Tensor | None:
            return None if grad is None or tensor is None else grad.to(tensor.dtype)

        return (
            like(self.x, x),
            like(self.weight, weight),
            None if tied else like(self.table, table),
            like(self.bias, bias),
            like(self.gamma, gamma),
            like(self.beta, beta),
        )


def _block_logits(xs, weight, bias, gamma, beta, mu, r, block) -> tuple[Tensor, Tensor]:
    """s and ẑ for one block of the vocabulary; both ``[N, K]``, never the same storage."""
    z_hat = xs @ weight[block].to(xs.dtype).T
    if bias is not None:
        z_hat += bias[block].to(xs.dtype)
    z_hat.sub_(mu[:, None]).mul_(r[:, None])
    s = z_hat.clone() if gamma is None else z_hat * gamma[block].to(xs.dtype)
    if beta is not None:
        s += beta[block].to(xs.dtype)
    return s, z_hat


def _target_logits(xs, weight, bias, gamma, beta, mu, r, targets) -> Tensor:
    ids = targets.clamp_min(0)
    z = torch.einsum("nd,nkd->nk", xs, weight[ids].to(xs.dtype))
    if bias is not None:
        z = z + bias[ids].to(xs.dtype)
    s = (z - mu[:, None]) * r[:, None]
    if gamma is not None:
        s = s * gamma[ids].to(xs.dtype)
    if beta is not None:
        s = s + beta[ids].to(xs.dtype)
    return s * (targets >= 0)


def _add_targets(ds: Tensor, targets: Tensor, t: Tensor, block: slice) -> None:
    inside = (targets >= block.start) & (targets < block.stop)
    rows, which = inside.nonzero(as_tuple=True)
    cells = (rows, targets[rows, which] - block.start)
    ds.index_put_(cells, t[rows, which], accumulate=True)
