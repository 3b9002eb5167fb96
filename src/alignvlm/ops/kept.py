"""The backward sweep where all logits were kept and have statistics of their own.

dz = r (a − S1/V − ẑ S2/V) needs its row's sums over the whole vocabulary first. So a group of rows
is swept twice: once for p, a and the sums, once more for dz. Between the two r∘a is held,
``[R, V]`` for the R rows of the group; nothing is computed again, and no D x D product is needed.
"""

from __future__ import annotations

from torch import Tensor

from .corrections import Block, Gradients
from .products import product
from .sweep import Sweep, by_columns
from .tiles import Sums


def sweep_in_groups(call: Sweep, grads: Gradients, g: Tensor | None, lse, offset, marked) -> None:
    """Add the gradients of all rows.

    Args:
        call: with kept logits.
        grads: what is added to.
        g: upstream gradient of the mixture, ``[N, T]`` in the operands' dtype.
        lse: logsumexp of every row, ``[N]``.
        offset: what is taken from the upstream gradient of a probability, ``[N]``.
        marked: ids, ẑ and upstream gradient of the targets, ``[N, M]`` each, or ``None``.
    """
    inners = [Block(grads, block, call.operand) for block in call.vocabulary()]
    for rows in call.row_slices():
        _sweep_group(call, grads, inners, rows, g, lse, offset, marked)
    for inner in inners:
        inner.close()


def _sweep_group(call, grads, inners, rows, g, lse, offset, marked) -> None:
    held = None
    if grads.needs_sums:
        vocab = call.weight.shape[0]
        held = by_columns(call.kept, rows.stop - rows.start, vocab, call.operand)
    for inner in inners:
        _first(call, grads, inner, rows, g, lse, offset, held)
    if held is None:
        return
    if marked is not None:
        grads.add_target_sums(rows, *marked, call)
    means = grads.row_means(rows, call.weight.shape[0])
    for inner in inners:
        _second(call, grads, inner, rows, held, *means)


def _first(call: Sweep, grads: Gradients, inner: Block, rows: slice, g, lse, offset, held) -> None:
    """p, the table's gradient, row sums and those over rows; r∘a goes to ``held``."""
    block, up = inner.block, None
    if g is not None:
        e = call.table[block].to(call.operand)
        up = product(g[rows], e.T, call.dtype, for_transpose=True)
    gamma, beta, _ = inner.column_sums
    p, _ = call.tiles.backward_tile(
        call.logits(block, rows), up, call.rows.slice(rows), call.columns(block), lse[rows],
        offset[rows], Sums(*grads.row_sums(rows), gamma, beta, None), call.operand,
        None if held is None else held[:, block],
    )  # fmt: skip
    if g is not None:
        inner.add_table(p, g[rows])


def _second(call: Sweep, grads: Gradients, inner: Block, rows: slice, held, s1, s2) -> None:
    """dz in the place of r∘a, and the gradients that follow from it."""
    block = inner.block
    dz = call.tiles.correct_tile(
        call.logits(block, rows), held[:, block], call.rows.slice(rows),
        call.full(call.bias, block), s1, s2, inner.column_sums[2],
    )  # fmt: skip
    inner.add(dz, call.xs[rows], call.weight[block].to(call.operand), rows)
