"""Branches: several questions in one prompt, each of which sees the pages but not the others.

The language model reads the pages once. What it computes for a question is what it would compute
for the pages and that question alone: the same tokens are visible at the same positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import AlignVLMError


def visible(
    turn_ids: Int[Tensor, "batch length"], mask: Int[Tensor, "batch length"] | None
) -> Bool[Tensor, "batch length length"]:
    """Which tokens (last axis) each token sees: earlier ones of its own turn and of turn 0.

    Args:
        turn_ids: 0 for what every turn sees, 1, 2, ... for the turns.
        mask: 0 at padding, which sees itself alone.
    """
    length = turn_ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=turn_ids.device).tril()
    own = turn_ids[:, None, :] == turn_ids[:, :, None]
    seen = earlier & (own | (turn_ids[:, None, :] == 0))
    if mask is not None:
        seen &= mask.bool()[:, None, :]
    return seen | torch.eye(length, dtype=torch.bool, device=turn_ids.device)


def positions(
    seen: Bool[Tensor, "batch length length"],
) -> Int[Tensor, "batch length"]:
    """Position ids: how many tokens each one sees before itself."""
    return seen.sum(-1) - 1


def attention(
    seen: Bool[Tensor, "batch length length"], dtype: torch.dtype, kind: str
) -> Float[Tensor, "batch 1 length length"]:
    """What is added to attention scores, as transformers takes it.

    Args:
        kind: the language model's attention implementation.

    Raises:
        AlignVLMError: it takes no mask of this form.
    """
    if kind not in ("eager", "sdpa"):
        raise AlignVLMError(
            f"turn_ids needs 'eager' or 'sdpa' attention, and the language model has {kind!r}"
        )
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return bias.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
