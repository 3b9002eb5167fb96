"""Equal features, which an encoder of pages gives all blank cells, as one row of work."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distinct(features: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "m d"], Int[Tensor, "*n"]]:
    """The different vectors among ``features``, and which of them each one is.

    Encoders that read whole pages give the many blank cells of a page one feature; its P_vocab,
    thousands of products, is then computed once. Exact: equal means bitwise equal.
    """
    rows, index = torch.unique(features.flatten(0, -2), dim=0, return_inverse=True)
    return rows, index.view(features.shape[:-1])


def distinct_pairs(
    features: Float[Tensor, "*n d"], targets: Int[Tensor, "*n"]
) -> tuple[Float[Tensor, "m d"], Int[Tensor, "m"], Int[Tensor, "*n"]]:
    """The different pairs of a vector and a target, and which of them each one is.

    Negative targets are one: none.
    """
    rows, index = distinct(features)
    base = int(targets.max()) + 2
    pairs, where = torch.unique(index * base + targets.clamp_min(-1) + 1, return_inverse=True)
    return rows[pairs // base], pairs % base - 1, where
