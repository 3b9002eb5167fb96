"""What happens to a tile of logits between the matrix products, in plain PyTorch.

``triton_tiles`` fuses each of these functions into one pass on a GPU. Shapes: R rows, K columns of
the vocabulary. ẑ = (z + b − μ) r and s = γẑ + β; without the LayerNorm s = z + b. Logits z come in
full precision or, where they are kept on a GPU, in the operands' dtype; no function changes them.
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
        z_hat: Σ_v ẑ, ``[R]``: nothing but μ's rounding, which dz must not see (``kept``).
        gamma: Σ_n ds∘ẑ, ``[K]``.
        beta: Σ_n ds, ``[K]``.
        bias: Σ_n r a, ``[K]``.
    """

    s1: Tensor | None
    s2: Tensor | None
    z_hat: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    bias: Tensor | None


def forward_tile(
    z: Tensor, rows: Rows, columns: Columns, peak: Tensor, total: Tensor, operand: torch.dtype
) -> tuple[Tensor, Tensor]:
    """exp(s − new peak) in ``operand``, and what earlier sums must be multiplied by.

    ``peak`` and ``total`` (``[R]``, the softmax's running maximum and sum) are updated. ``total``
    adds the exponentials before they are rounded.
    """
    s = _normalised(z, rows, columns, peak.dtype)
    if columns.gamma is not None:
        s.mul_(columns.gamma)
    if columns.beta is not None:
        s.add_(columns.beta)
    new_peak = torch.maximum(peak, s.amax(-1))
    rescale = torch.exp(peak - new_peak)
    p = s.sub_(new_peak[:, None]).exp_()
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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """p and r∘a of a tile in ``operand``, with ds = p∘(upstream − offset); adds to ``sums``.

    ``upstream`` (full precision) may be overwritten. ``out``: where r∘a goes, ``[R, K]``.
    """
    z_hat = _normalised(z, rows, columns, lse.dtype)
    p = z_hat.clone() if columns.gamma is None else z_hat * columns.gamma
    if columns.beta is not None:
        p.add_(columns.beta)
    p.sub_(lse[:, None]).exp_()
    ds = p * -offset[:, None] if upstream is None else upstream.sub_(offset[:, None]).mul_(p)
    a = _collect(ds, z_hat, columns, sums)
    r = 1 if rows.rstd is None else rows.rstd[:, None]
    a = torch.mul(a, r, out=a if out is None else out)
    if sums.bias is not None:
        sums.bias.add_(a.sum(0))
    return p.to(operand), a.to(operand)


def statistics_tile(z: Tensor, bias: Tensor | None, seen: int, mean: Tensor, moved: Tensor) -> None:
    """Add a tile to the mean over ``seen`` columns, and to Σ (z + b − mean)², both ``[R]``.

    Each tile's own mean is subtracted before anything is squared, and two such sums are merged as
    Chan, Golub and LeVeque do: rows that are almost constant keep their small variance.
    """
    z = z.to(mean.dtype) if bias is None else z + bias
    count = z.shape[1]
    own = z.mean(-1)
    moved.add_((z - own[:, None]).square_().sum(-1))
    step = own - mean
    moved.addcmul_(step, step, value=seen * count / (seen + count))
    mean.add_(step, alpha=count / (seen + count))


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

    ``sums``: Σ_n dz, ``[K]``, is added to it. Columns have bias ``b``, ``[K]``.
    """
    assert rows.rstd is not None
    z_hat = _normalised(z, rows, Columns(bias, None, None), s1.dtype)
    r = rows.rstd
    tilted, shift = z_hat.mul_((-r * s2)[:, None]).add_(a), (r * s1)[:, None]
    if sums is not None:
        sums.add_((tilted - shift).sum(0))  # before it is rounded
    return torch.sub(tilted, shift, out=a)


def _normalised(z: Tensor, rows: Rows, columns: Columns, dtype: torch.dtype) -> Tensor:
    """ẑ in a new tensor."""
    if rows.mu is None or rows.rstd is None:
        return z.to(dtype, copy=True) if columns.bias is None else z + columns.bias
    if columns.bias is None:
        return (z - rows.mu[:, None]).mul_(rows.rstd[:, None])
    return (z + columns.bias).sub_(rows.mu[:, None]).mul_(rows.rstd[:, None])


def _collect(ds: Tensor, z_hat: Tensor, columns: Columns, sums: Sums) -> Tensor:
    """Add to the sums over what is there already; returns a in ds's place."""
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
    if sums.z_hat is not None:
        sums.z_hat.add_(z_hat.sum(-1))
    if columns.gamma is not None:
        ds.mul_(columns.gamma)
    return ds


def _add_row_sums(total: Tensor, tile: Tensor, weights: Tensor | None) -> None:
    if weights is None:
        total.add_(tile.sum(-1))
    else:
        total.addmv_(tile, weights)
