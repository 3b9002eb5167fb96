"""What happens to a tile of logits between the matrix products, in plain PyTorch.

``triton_tiles`` fuses each of the two functions into one pass on a GPU. Shapes: R rows, K columns
of the vocabulary. ẑ = (z + b − μ) r and s = γẑ + β; without the LayerNorm s = z + b.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Per row: μ and r = (σ² + eps)^-½ (``None`` without the LayerNorm)."""

    mu: Tensor | None
    rstd: Tensor | None

    def slice(self, rows: slice) -> Rows:
        """Those of some rows."""
        if self.mu is None or self.rstd is None:
            return self
        return Rows(self.mu[rows], self.rstd[rows])


class Columns(NamedTuple):
    """Per vocabulary row of a block: bias b, γ and β in full precision, ``None`` if absent."""

    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


class Sums(NamedTuple):
    """What the backward sweep adds up; ``None``: not wanted.

    Attributes:
        s1: Σ_v a, ``[R]``, with a = γ∘ds.
        s2: Σ_v a∘ẑ, ``[R]``.
        gamma: Σ_n ds∘ẑ, ``[K]``.
        beta: Σ_n ds, ``[K]``.
        bias: Σ_n r a, ``[K]``.
    """

    s1: Tensor | None
    s2: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    bias: Tensor | None


def forward_tile(
    z: Tensor, rows: Rows, columns: Columns, peak: Tensor, total: Tensor, operand: torch.dtype
) -> tuple[Tensor, Tensor]:
    """exp(s − new peak) in ``operand``, and what earlier sums must be multiplied by.

    ``z`` is overwritten; ``peak`` and ``total`` (``[R]``, the softmax's running maximum and sum)
    are updated. ``total`` adds the exponentials before they are rounded.
    """
    if columns.bias is not None:
        z.add_(columns.bias)
    if rows.mu is not None and rows.rstd is not None:
        z.sub_(rows.mu[:, None]).mul_(rows.rstd[:, None])
    if columns.gamma is not None:
        z.mul_(columns.gamma)
    if columns.beta is not None:
        z.add_(columns.beta)
    new_peak = torch.maximum(peak, z.amax(-1))
    rescale = torch.exp(peak - new_peak)
    p = z.sub_(new_peak[:, None]).exp_()
    total.mul_(rescale).add_(p.sum(-1))
    peak.copy_(new_peak)
    return p.to(operand), rescale


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

    ``upstream`` is overwritten, ``z`` is not.
    """
    if columns.bias is not None:
        z = z + columns.bias
    z_hat = z
    if rows.mu is not None and rows.rstd is not None:
        z_hat = (z - rows.mu[:, None]).mul_(rows.rstd[:, None])
    p = z_hat.clone() if columns.gamma is None else z_hat * columns.gamma
    if columns.beta is not None:
        p.add_(columns.beta)
    p.sub_(lse[:, None]).exp_()
    ds = p * -offset[:, None] if upstream is None else upstream.sub_(offset[:, None]).mul_(p)
    a = _collect(ds, z_hat, rows, columns, sums)
    return p.to(operand), a.to(operand)


def _collect(ds: Tensor, z_hat: Tensor, rows: Rows, columns: Columns, sums: Sums) -> Tensor:
    """Add to the sums; returns r∘a in ds's place."""
    if sums.beta is not None:
        sums.beta.add_(ds.sum(0))
    if sums.gamma is not None or sums.s2 is not None:
        moved = ds * z_hat
        if sums.gamma is not None:
            sums.gamma.add_(moved.sum(0))
        if sums.s2 is not None:
            _add_row_sums(sums.s2, moved, columns.gamma)
    if sums.s1 is not None:
        _add_row_sums(sums.s1, ds, columns.gamma)
    if columns.gamma is not None:
        ds.mul_(columns.gamma)
    if rows.rstd is not None:
        ds.mul_(rows.rstd[:, None])
    if sums.bias is not None:
        sums.bias.add_(ds.sum(0))
    return ds


def _add_row_sums(total: Tensor, tile: Tensor, weights: Tensor | None) -> None:
    if weights is None:
        total.add_(tile.sum(-1))
    else:
        total.addmv_(tile, weights)
