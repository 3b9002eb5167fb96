"""``vocab_mixture`` streamed over the vocabulary: exact, one sweep forward and one backward.

Shapes: N rows, V vocabulary, D width, R x K a tile of the logits, M targets a row. Nothing of size
N x V exists: logits are computed again in the backward sweep, unless they are small.

With ẑ = (z − μ) r, s = γẑ + β, p = softmax(s), o = pᵀE, and upstream gradients g (of o),
h (of the logsumexp) and t (of the target logits)::

    ds = p ∘ (E g − g·o + h) + onehot(target) t        dE = pᵀ g      dβ = Σ_n ds   dγ = Σ_n ds∘ẑ
    a = γ∘ds       S1 = Σ_v a       S2 = Σ_v a∘ẑ
    dz = r (a − S1/V − ẑ S2/V)

    Σ_v ẑ_v w_v = r V (C x + c), so with statistics of the streamed rows themselves
    dx = r Wᵀa − r S1 w̄ − r² S2 (C x + c)
    dW = aᵀ(r x) − 1 (Σ_n r S1/V x)ᵀ − (W − 1w̄ᵀ) M − (b − b̄) mᵀ,   M = Σ_n q x xᵀ, m = Σ_n q x,
    db = Σ_n r a − Σ_n r S1/V − (W − 1w̄ᵀ) m − (b − b̄) Σ_n q,        q = r² S2/V

so the LayerNorm's contribution is a D x D correction after the sweep (``corrections.py``), and the
targets' a few gathered rows. dx keeps the same form for given statistics; dW and db then lose their
corrections.

The sweeps are custom operators: ``torch.compile`` and checkpointing see one node each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import choose_blocks
from .corrections import Block, Gradients
from .products import accumulate, full_precision, product
from .reference import VocabMixture, check_targets
from .statistics import VocabStats, cached_vocab_stats, statistics_dtype
from .sweep import Sweep
from .tiles import Sums


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
    """See :func:`alignvlm.ops.vocab_mixture`; ``x`` is ``[N, D]``, ``targets`` ``[N, M]``."""
    dtype = statistics_dtype(x)
    given = stats is not None
    if normalize and stats is None:
        stats = cached_vocab_stats(weight, bias)
    tensors = (x, weight, table, bias, norm_weight, norm_bias)
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    columns, rows, kept = choose_blocks(
        x.shape[0], weight.shape[0], dtype.itemsize, x.device, columns=chunk_size, grad=grad
    )
    output, lse, target_logits, *_ = _forward(
        *tensors,
        list(stats or ()),
        targets,
        eps,
        given,
        table is weight,
        [columns, rows, int(kept)],
    )
    return VocabMixture(
        None if table is None else output, lse, None if targets is None else target_logits
    )


@torch.library.custom_op("alignvlm::vocab_mixture", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    stats: list[Tensor],
    targets: Tensor | None,
    eps: float,
    fixed_stats: bool,
    tied: bool,
    blocks: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mixture, logsumexp, target logits; then full-precision mixture and kept logits."""
    if targets is not None:
        check_targets(targets, weight.shape[0])  # in here, where compilers do not look
    with full_precision(x):
        call = Sweep(x, weight, table, bias, gamma, beta, stats, eps, blocks)
        mixture, lse, kept = _sweep_forward(call)
        target_logits = x.new_empty(0) if targets is None else call.target_logits(targets)
    if table is None or mixture.dtype == table.dtype:
        return mixture, lse, target_logits, x.new_empty(0), kept
    return mixture.to(table.dtype), lse, target_logits, mixture, kept


def _sweep_forward(call: Sweep) -> tuple[Tensor, Tensor, Tensor]:
    count = len(call.xs)
    table = call.table
    peak = call.xs.new_full((count,), -torch.inf, dtype=call.dtype)
    total = torch.zeros_like(peak)
    width = 0 if table is None else table.shape[1]
    mixture = total.new_zeros((count, width) if table is not None else (0,))
    kept = call.room_for_logits()
    for block in call.vocabulary():
        w = call.weight[block].to(call.operand)
        e = None if table is None else table[block].to(call.operand)
        columns = call.columns(block)
        for rows in call.row_slices():
            keep = call.kept_tile(kept, block, rows)
            z = product(call.xs[rows], w.T, call.dtype, for_transpose=keep is not None)
            if keep is not None:
                keep.copy_(z)
            p, rescale = call.tiles.forward_tile(
                z, call.rows.slice(rows), columns, peak[rows], total[rows], call.operand
            )
            if e is not None:
                accumulate(mixture[rows].mul_(rescale[:, None]), p, e)
    if table is not None:
        mixture /= total[:, None]
    return mixture, peak + total.log(), kept


@_forward.register_fake
def _(x, weight, table, bias, gamma, beta, stats, targets, eps, fixed_stats, tied, blocks):
    dtype = statistics_dtype(x)
    if table is None:
        mixture = x.new_empty(0, dtype=dtype)
        full = x.new_empty(0)
    else:
        mixture = table.new_empty(x.shape[0], table.shape[1])
        full = x.new_empty(0) if table.dtype == dtype else mixture.to(dtype)
    kept = x.new_empty((x.shape[0] * weight.shape[0] if blocks[2] else 0,), dtype=dtype)
    logits = x.new_empty(0) if targets is None else x.new_empty(targets.shape, dtype=dtype)
    return mixture, x.new_empty(x.shape[0], dtype=dtype), logits, full, kept


def _save(ctx, inputs, output) -> None:
    x, weight, table, bias, gamma, beta, stats, targets, eps, fixed, tied, blocks = inputs
    mixture, lse, _, full, kept = output
    full = mixture if full.numel() == 0 else full
    ctx.save_for_backward(x, weight, table, bias, gamma, beta, targets, lse, full, kept, *stats)
    ctx.options = (eps, fixed, tied, blocks)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, g, h, t, *_):
    x, weight, table, bias, gamma, beta, targets, lse, full, kept, *stats = ctx.saved_tensors
    eps, fixed, tied, blocks = ctx.options
    inputs = (x, weight, table, bias, gamma, beta)
    wanted = list(ctx.needs_input_grad[:6])
    upstream = (g if table is not None else None, h, t if targets is not None else None)
    found = iter(
        _backward(
            *inputs, stats, targets, lse, full, kept, *upstream, wanted, eps, fixed, tied, blocks
        )
    )
    if tied and table is not None and wanted[1]:
        wanted[2] = False  # one gradient serves both roles
    gradients = [next(found) if need else None for need in wanted]
    return *gradients, [None] * len(stats), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("alignvlm::vocab_mixture_backward", mutates_args=())
def _backward(
    x: Tensor,
    weight: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    stats: list[Tensor],
    targets: Tensor | None,
    lse: Tensor,
    mixture: Tensor,
    kept: Tensor,
    g: Tensor | None,
    h: Tensor | None,
    t: Tensor | None,
    wanted: list[bool],
    eps: float,
    fixed_stats: bool,
    tied: bool,
    blocks: list[int],
) -> list[Tensor]:
    """Gradients of those of the first six arguments that are ``wanted``, in order."""
    with full_precision(x):
        call = Sweep(x, weight, table, bias, gamma, beta, stats, eps, blocks)
        tied = tied and table is not None and wanted[1]
        one_tile = len(call.row_slices()) == 1
        grads = Gradients(x, weight, table, call.dtype, wanted, tied=tied, one_tile=one_tile)
        offset = lse.new_zeros(lse.shape)
        if g is not None:
            offset += (g.to(call.dtype) * mixture).sum(-1)
        if h is not None:
            offset -= h
        _sweep_backward(call, grads, g, kept, lse, offset)
        if t is not None and targets is not None:
            ids, z_hat = call.target_z_hat(targets)
            grads.add_targets(ids, z_hat, t.to(call.dtype) * (targets >= 0), call)
        if stats:
            grads.correct(call, VocabStats(*stats), fixed=fixed_stats)
        return grads.results((x, weight, table, bias, gamma, beta))


def _sweep_backward(call: Sweep, grads: Gradients, g, kept, lse, offset) -> None:
    g = None if g is None else g.to(call.operand)
    for block in call.vocabulary():
        w = call.weight[block].to(call.operand)
        e = None if g is None else call.table[block].to(call.operand)
        columns, inner = call.columns(block), Block(grads, block, call.operand)
        for rows in call.row_slices():
            x = call.xs[rows]
            z = call.kept_tile(kept, block, rows)
            if z is None:
                z = product(x, w.T, call.dtype, for_transpose=True)
            up = None
            if g is not None:
                up = product(g[rows], e.T, call.dtype, for_transpose=True)
            sums = Sums(*grads.row_sums(rows), *inner.column_sums)
            p, a = call.tiles.backward_tile(
                z, up, call.rows.slice(rows), columns, lse[rows], offset[rows], sums, call.operand
            )
            inner.add(p, a, x, g, w, rows)
        inner.close()


@_backward.register_fake
def _(
    x, weight, table, bias, gamma, beta, stats, targets, lse, mixture, kept, g, h, t, wanted,
    eps, fixed_stats, tied, blocks,
):  # fmt: skip
    skip = 2 if tied and table is not None and wanted[1] else None
    tensors = (x, weight, table, bias, gamma, beta)
    return [
        tensor.new_empty(tensor.shape)
        for index, (tensor, need) in enumerate(zip(tensors, wanted, strict=True))
        if need and index != skip
    ]
