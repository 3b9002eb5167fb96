"""Equal features, which an encoder of pages gives all blank cells, as one row of work."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distinct(features: Float[Tensor, "n d"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """Where each different vector stands first, and which of them each one is.

    Encoders that read whole pages give the many blank cells of a page one feature; its P_vocab,
    thousands of products, is then computed once: ``f(features)`` is ``f(features[first])[index]``.
    Exact: equal means bitwise equal.

    What flows back through ``features[first]`` arrives at the first of equal vectors for all of
    them. So among vectors that take a gradient only the commonest are taken together: the blank
    ones, which come from one place.

    >>> distinct(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    (tensor([0, 1]), tensor([0, 1, 0]))
    """
    rows = features.detach()
    marks = _marks(rows)
    _, index = torch.unique(marks, return_inverse=True)
    first = _first(index)
    if not bool((rows[first[index]] == rows).all()):  # vectors that differ share a mark
        _, index = torch.unique(rows, dim=0, return_inverse=True)
        first = _first(index)
    if features.requires_grad and len(first) < len(rows):
        index = _apart_but_the_commonest(index)
        first = _first(index)
    # in order of appearance
    order = torch.argsort(first)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return first[order], rank[index]


def _marks(rows: Tensor) -> Tensor:
    """A number for each vector: its product with a fixed random one. Equal vectors have equal
    marks if sums are taken in one order for all rows, so products come first."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.rand(rows.shape[-1], generator=generator, dtype=torch.float64)
    marks = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in range(0, len(rows), 4096):
        part = rows[block : block + 4096].double()
        marks[block : block + 4096] = (part * direction.to(rows.device)).sum(-1)
    return marks


def _apart_but_the_commonest(index: Tensor) -> Tensor:
    """Each vector by itself, but those of the largest group."""
    common = index == torch.bincount(index).argmax()
    alone = torch.arange(1, len(index) + 1, device=index.device)
    return torch.unique(torch.where(common, 0, alone), return_inverse=True)[1]


def _first(index: Tensor) -> Tensor:
    count = int(index.max()) + 1 if len(index) else 0
    first = torch.full((count,), len(index), dtype=torch.long, device=index.device)
    places = torch.arange(len(index), device=index.device)
    return first.scatter_reduce(0, index, places, "amin")


def distinct_pairs(
    features: Float[Tensor, "n d"], targets: Int[Tensor, " n"]
) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """Where each different pair of a vector and a target stands first, and which of them each is.

    Negative targets are one: none.
    """
    _, index = distinct(features)
    base = int(targets.max()) + 2 if len(targets) else 2
    _, where = torch.unique(index * base + targets.clamp_min(-1) + 1, return_inverse=True)
    return _first(where), where
