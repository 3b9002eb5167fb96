"""Blank dropping: visual tokens under which nothing starts leave the sequence.

On a document page most cells are blank or continue a token that started before. P_vocab says which;
dropping them shortens the prompt several times, and a language model reads what remains almost like
text. A row of the page of which nothing remains loses its newline as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def kept_positions(
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"] | None,
    dropped: Bool[Tensor, "batch length"],
    image_token_id: int,
    row_end: bool,
) -> Bool[Tensor, "batch length"]:
    """Which positions of the prompts remain.

    Args:
        dropped: placeholders whose visual token is blank.
        row_end: a newline follows each row of placeholders; it goes with an empty row.
    """
    placeholders = input_ids == image_token_id
    keep = ~dropped
    if attention_mask is not None:
        keep = keep & attention_mask.bool()
    if not row_end:
        return keep
    ends = torch.zeros_like(placeholders)
    ends[:, 1:] = placeholders[:, :-1] & ~placeholders[:, 1:]
    # number of the row each position belongs to; a row's newline belongs to the row before it
    rows = ends.long().cumsum(-1) - ends.long()
    filled = torch.zeros_like(rows).scatter_add_(-1, rows, (placeholders & keep).long())
    empty = filled.gather(-1, rows) == 0
    return keep & ~(ends & empty)


class Compact(NamedTuple):
    """Where the remaining positions come from, padded on the left.

    Attributes:
        index: int64 ``[B, L']``, positions in the full prompt.
        mask: int64 ``[B, L']``, 0 at padding.
    """

    index: Int[Tensor, "batch kept"]
    mask: Int[Tensor, "batch kept"]

    @classmethod
    def of(cls, keep: Bool[Tensor, "batch length"]) -> Compact:
        """Gather the kept positions of each prompt at its right end."""
        length = int(keep.sum(-1).max())
        # a stable sort leaves the kept positions in reading order, behind the others
        index = torch.sort(keep.long(), dim=-1, stable=True).indices[:, keep.shape[1] - length :]
        return cls(index, keep.gather(-1, index).long())

    def gather(self, values: Tensor) -> Tensor:
        """``[B, L, ...]`` to ``[B, L', ...]``."""
        index = self.index.view(*self.index.shape, *[1] * (values.ndim - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    def scatter(self, values: Tensor, length: int) -> Tensor:
        """``[B, L', ...]`` back to ``[B, length, ...]``, zero where nothing remained."""
        full = values.new_zeros(values.shape[0], length, *values.shape[2:])
        masked = values * self.mask.view(*self.mask.shape, *[1] * (values.ndim - 2))
        index = self.index.view(*self.index.shape, *[1] * (values.ndim - 2))
        return full.scatter(1, index.expand_as(values), masked.to(values.dtype))

    def positions(self) -> Int[Tensor, "batch kept"]:
        """Position ids: 0 at each prompt's first remaining token."""
        return (self.mask.cumsum(-1) - 1).clamp_min(0)
