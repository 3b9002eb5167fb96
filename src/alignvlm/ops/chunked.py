"""``vocab_mixture`` block by block over the vocabulary: exact, logits kept or computed twice.

Shapes: N rows, V vocabulary, D width, R x K a tile of the logits, M targets a row. Where the logits
fit a budget they are kept, and everything is taken from them (``kept``). Otherwise nothing of size
N x V exists: one sweep forward, and one backward that computes the logits again.

With ẑ = (z − μ) r, s = γẑ + β, p = softmax(s), o = pᵀE, and upstream gradients g (of o),
h (of the logsumexp) and t (of the target logits)::

    ds = p ∘ (E g − g·o + h) + onehot(target) t        dE = pᵀ g      dβ = Σ_n ds   dγ = Σ_n ds∘ẑ
    a = γ∘ds       S1 = Σ_v a       S2 = Σ_v a∘ẑ
    dz = r (a − S1/V − ẑ S2/V)

    Σ_v ẑ_v w_v = r V (C x + c), so with statistics of the streamed rows themselves
    dx = r Wᵀa − r S1 w̄ − r² S2 (C x + c)
    dW = aᵀ(r x) − 1 (Σ_n r S1/V x)ᵀ − (W − 1w̄ᵀ) M − (b − b̄) mᵀ,   M = Σ_n q x xᵀ, m = Σ_n q x,
    db = Σ_n r a − Σ_n r S1/V − (W − 1w̄ᵀ) m − (b − b̄) Σ_n q,        q = r² S2/V

so when streamed the LayerNorm's contribution is a D x D correction after the sweep
(``corrections.py``), and the targets' a few gathered rows. dx keeps the same form for given
statistics; dW and db then lose their corrections.

The sweeps are custom operators: ``torch.compile`` and checkpointing see one node each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import choose_blocks
from .corrections import Block, Gradients
from .kept import sweep_in_groups
from .products import accumulate, full_precision, product
from .reference import VocabMixture, check_targets
from .statistics import VocabStats, cached_vocab_stats, statistics_dtype
from .sweep import Sweep, logits_dtype, room_for_logits
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
    keep_logits_gib: float | None = None,
) -> VocabMixture:
    """See :func:`alignvlm.ops.vocab_mixture`; ``x`` is ``[N, D]``, ``targets`` ``[N, M]``."""
    given = stats is not None
    tensors = (x, weight, table, bias, norm_weight, norm_bias)
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    columns, rows, kept = choose_blocks(
        x.shape[0],
        weight.shape[0],
        logits_dtype(x).itemsize,
        x.device,
        columns=chunk_size,
        grad=grad,
        in_groups=normalize and not given,
        budget=None if keep_logits_gib is None else keep_logits_gib * 2**30,
    )
    if normalize and stats is None and not kept:
        stats = cached_vocab_stats(weight, bias)
    output, lse, target_logits, *_ = _forward(
        *tensors,
        list(stats or ()),
        targets,
        eps,
        normalize,
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
    normalize: bool,
    fixed_stats: bool,
    tied: bool,
    blocks: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mixture, logsumexp, target logits; full-precision mixture, kept logits, row moments."""
    if targets is not None:
        check_targets(targets, weight.shape[0])  # in here, where compilers do not look
    kept = room_for_logits(x, weight.shape[0], bool(blocks[2]))
    with full_precision(x):
        call = Sweep(x, weight, table, bias, gamma, beta, blocks, kept)
        moments = x.new_empty(0, dtype=call.dtype)
        if stats:
            moments = torch.stack(VocabStats(*stats).moments(x.to(call.dtype)))
        elif normalize:
            moments = _sweep_statistics(call)
        call.normalise(moments, eps)
        mixture, lse = _sweep_forward(call)
        target_logits = x.new_empty(0) if targets is None else call.target_logits(targets)
    if table is None or mixture.dtype == table.dtype:
        return mixture, lse, target_logits, x.new_empty(0), kept, moments
    return mixture.to(table.dtype), lse, target_logits, mixture, kept, moments


def _sweep_statistics(call: Sweep) -> Tensor:
    """Mean and variance of every row of logits, ``[2, N]``, from the logits themselves."""
    count = len(call.xs)
    mean = call.xs.new_zeros(count, dtype=call.dtype)
    moved = torch.zeros_like(mean)
    for block in call.vocabulary():
        bias = call.full(call.bias, block)
        for rows in call.row_slices():
            z = call.logits(block, rows)
            call.tiles.statistics_tile(z, bias, block.start, mean[rows], moved[rows])
    call.filled = call.blocks.kept
    return torch.stack((mean, moved / call.weight.shape[0]))


def _sweep_forward(call: Sweep) -> tuple[Tensor, Tensor]:
    count = len(call.xs)
    table = call.table
    peak = call.xs.new_full((count,), -torch.inf, dtype=call.dtype)
    total = torch.zeros_like(peak)
    width = 0 if table is None else table.shape[1]
    mixture = total.new_zeros((count, width) if table is not None else (0,))
    for block in call.vocabulary():
        e = None if table is None else table[block].to(call.operand)
        columns = call.columns(block)
        for rows in call.row_slices():
            z = call.logits(block, rows)
            p, rescale = call.tiles.forward_tile(
                z, call.rows.slice(rows), columns, peak[rows], total[rows], call.operand
            )
            if e is not None:
                accumulate(mixture[rows].mul_(rescale[:, None]), p, e)
    call.filled = call.blocks.kept
    if table is not None:
        mixture /= total[:, None]
    return mixture, peak + total.log()


@_forward.register_fake
def _(
    x, weight, table, bias, gamma, beta, stats, targets, eps, normalize, fixed_stats, tied, blocks
):  # fmt: skip
    dtype = statistics_dtype(x)
    if table is None:
        mixture = x.new_empty(0, dtype=dtype)
        full = x.new_empty(0)
    else:
        mixture = table.new_empty(x.shape[0], table.shape[1])
        full = x.new_empty(0) if table.dtype == dtype else mixture.to(dtype)
    kept = room_for_logits(x, weight.shape[0], bool(blocks[2]))
    moments = x.new_empty((2, x.shape[0]) if normalize else 0, dtype=dtype)
    logits = x.new_empty(0) if targets is None else x.new_empty(targets.shape, dtype=dtype)
    return mixture, x.new_empty(x.shape[0], dtype=dtype), logits, full, kept, moments


def _save(ctx, inputs, output) -> None:
    x, weight, table, bias, gamma, beta, stats, targets, eps, _, fixed, tied, blocks = inputs
    mixture, lse, _, full, kept, moments = output
    full = mixture if full.numel() == 0 else full
    saved = (x, weight, table, bias, gamma, beta, targets, lse, full, kept, moments, *stats)
    ctx.save_for_backward(*saved)
    ctx.options = (eps, fixed, tied, blocks)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, g, h, t, *_):
    x, weight, table, bias, gamma, beta, *rest = ctx.saved_tensors
    targets, lse, full, kept, moments, *stats = rest
    eps, fixed, tied, blocks = ctx.options
    inputs = (x, weight, table, bias, gamma, beta)
    wanted = list(ctx.needs_input_grad[:6])
    upstream = (g if table is not None else None, h, t if targets is not None else None)
    sweep = (stats, targets, lse, full, kept, moments)
    found = iter(_backward(*inputs, *sweep, *upstream, wanted, eps, fixed, tied, blocks))
    if tied and table is not None and wanted[1]:
        wanted[2] = False  # one gradient serves both roles
    gradients = [next(found) if need else None for need in wanted]
    return *gradients, [None] * len(stats), *[None] * 6


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
    moments: Tensor,
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
        call = Sweep(x, weight, table, bias, gamma, beta, blocks, kept)
        call.filled = call.blocks.kept
        call.normalise(moments, eps)
        tied = tied and table is not None and wanted[1]
        in_groups = moments.ndim == 2 and not stats
        direct = in_groups or (len(call.row_slices()) == 1 and not tied)
        grads = Gradients(x, weight, table, call.dtype, wanted, tied=tied, direct=direct)
        offset = lse.new_zeros(lse.shape)
        if g is not None:
            offset += (g.to(call.dtype) * mixture).sum(-1)
            g = g.to(call.operand)
        if h is not None:
            offset -= h
        marked = None
        if t is not None and targets is not None:
            marked = (*call.target_z_hat(targets), t.to(call.dtype) * (targets >= 0))
        if in_groups:
            sweep_in_groups(call, grads, g, lse, offset, marked)
        else:
            _sweep_backward(call, grads, g, lse, offset)
            if marked is not None:
                grads.add_target_sums(slice(None), *marked, call)
        if marked is not None:
            grads.add_targets(*marked, call)
        if stats:
            grads.correct(call, VocabStats(*stats), fixed=fixed_stats)
        return grads.results((x, weight, table, bias, gamma, beta))


def _sweep_backward(call: Sweep, grads: Gradients, g, lse, offset) -> None:
    for block in call.vocabulary():
        w = call.weight[block].to(call.operand)
        e = None if g is None else call.table[block].to(call.operand)
        columns, inner = call.columns(block), Block(grads, block, call.operand)
        for rows in call.row_slices():
            z = call.logits(block, rows, for_transpose=True)
            up = None
            if g is not None and e is not None:
                up = product(g[rows], e.T, call.dtype, for_transpose=True)
            sums = Sums(*grads.row_sums(rows)[:2], None, *inner.column_sums)
            p, a = call.tiles.backward_tile(
                z, up, call.rows.slice(rows), columns, lse[rows], offset[rows], sums, call.operand
            )
            if g is not None:
                inner.add_table(p, g[rows])
            inner.add(a, call.xs[rows], w, rows)
        inner.close()


@_backward.register_fake
def _(
    x, weight, table, bias, gamma, beta, stats, targets, lse, mixture, kept, moments, g, h, t,
    wanted, eps, fixed_stats, tied, blocks,
):  # fmt: skip
    skip = 2 if tied and table is not None and wanted[1] else None
    tensors = (x, weight, table, bias, gamma, beta)
    return [
        tensor.new_empty(tensor.shape)
        for index, (tensor, need) in enumerate(zip(tensors, wanted, strict=True))
        if tensor is not None and need and index != skip
    ]
