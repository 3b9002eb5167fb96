"""Do the embeddings that P_vocab uses span the space of all (arXiv 2502.01341)?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignvlm.errors import ConfigError


class Components(NamedTuple):
    """Principal components of an embedding table.

    Attributes:
        mean: of the rows, ``[d]``.
        axes: ``[k, d]``, orthonormal, the widest first; each one's largest entry is positive.
        explained: share of the variance along each, ``[k]``.
    """

    mean: Tensor
    axes: Tensor
    explained: Tensor

    def project(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Coordinates of some rows."""
        return (rows.double() - self.mean) @ self.axes.T


@torch.no_grad()
def principal_components(table: Float[Tensor, "vocab d"], k: int) -> Components:
    """The ``k`` directions in which a table's rows differ most, in float64.

    Raises:
        ConfigError: ``k`` is not between 1 and the table's width, or it has one row.
    """
    if not 1 <= k <= table.shape[1] or len(table) < 2:
        raise ConfigError(f"no {k} principal components of a table {tuple(table.shape)}")
    rows = table.double()
    mean = rows.mean(0)
    centred = rows - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / (len(rows) - 1))
    axes = axes.flip(1)[:, :k].T
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    # the sign of an eigenvector is arbitrary: fix it, so that a plot does not flip
    return Components(mean, axes * largest.sign(), variance.flip(0)[:k] / variance.sum())


@torch.no_grad()
def spread(
    table: Float[Tensor, "vocab d"], used: Int[Tensor, " m"], k: int = 10
) -> Float[Tensor, " k"]:
    """Standard deviation of the used rows over that of all rows, along each of ``k`` components.

    About 1 everywhere: the used rows span the space as all rows do. Near 0 along an axis: they lie
    in a plane across it.

    Raises:
        ConfigError: fewer than two used rows, or see :func:`principal_components`.
    """
    if len(used) < 2:
        raise ConfigError("the spread of fewer than two embeddings is not defined")
    found = principal_components(table, k)
    everything = found.project(table).std(0)
    return found.project(table[used]).std(0) / everything.clamp_min(1e-12)
