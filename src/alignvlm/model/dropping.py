"""Blank dropping: visual tokens under which nothing starts leave the sequence.

On a document page most cells are blank or continue a token that started before. P_vocab says which;
dropping them shortens the prompt several times, and a language model reads what remains almost like
text. A row of the page of which nothing remains loses its newline as well. An encoder that reads
also says in which order its tokens are read, column after column where text stands in columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Order = Sequence[Tensor]
"""Rows of an image's visual tokens in reading order, indices into the image's tokens."""


def blank_tokens(
    blank_log_p: Float[Tensor, "tiles n"] | None, threshold: float | None
) -> Bool[Tensor, "tiles n"] | None:
    """Which visual tokens are blank: P_vocab gives the blank id more than ``blank_threshold``."""
    if blank_log_p is None or threshold is None:
        return None
    return blank_log_p.detach().exp() > threshold


def kept_positions(
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"] | None,
    dropped: Bool[Tensor, "batch length"],
    image_token_id: int,
    row_end: bool,
    images: Sequence[Sequence[tuple[int, Order]]] | None = None,
) -> list[Int[Tensor, " _"]]:
    """Which positions of the prompts remain, in the order in which they are read.

    Args:
        dropped: placeholders whose visual token is blank.
        row_end: a newline follows each row of placeholders; it goes with an empty row.
        images: for each prompt its images' numbers of visual tokens and their reading order;
            ``None``: as the placeholders stand. A newline of the image then stands after each row
            that is read, so it may occur several times.
    """
    keep = ~dropped if attention_mask is None else ~dropped & attention_mask.bool()
    placeholders = input_ids == image_token_id
    if images is not None:
        return [_in_order(placeholders[b], keep[b], own, row_end) for b, own in enumerate(images)]
    if row_end:
        keep = keep & ~_ends_of_empty_rows(placeholders, keep)
    return [row.nonzero()[:, 0] for row in keep]


def _ends_of_empty_rows(placeholders: Tensor, keep: Tensor) -> Tensor:
    """Newlines after rows of placeholders of which none remains."""
    ends = torch.zeros_like(placeholders)
    ends[:, 1:] = placeholders[:, :-1] & ~placeholders[:, 1:]
    # number of the row each position belongs to; a row's newline belongs to the row before it
    rows = ends.long().cumsum(-1) - ends.long()
    filled = torch.zeros_like(rows).scatter_add_(-1, rows, (placeholders & keep).long())
    return ends & (filled.gather(-1, rows) == 0)


def _in_order(
    placeholders: Tensor, keep: Tensor, images: Sequence[tuple[int, Order]], row_end: bool
) -> Tensor:
    """Positions of one prompt: its text, and each image's rows as they are read."""
    places = placeholders.nonzero()[:, 0]
    parts, at, filled = [], 0, 0
    for count, order in images:
        own = places[filled : filled + count]
        filled += count
        first, last = int(own[0]), int(own[-1]) + 1
        parts.append(_kept(keep, at, first))
        # the newline after the image's first row of placeholders stands for all of them
        gaps = (own[1:] - own[:-1] > 1).nonzero()
        after = int(own[gaps[0, 0]]) + 1 if len(gaps) else last
        newline = row_end and after < len(keep)
        for row in order:
            cells = own[row.to(own.device)]
            cells = cells[keep[cells]]
            if len(cells):
                parts += [cells, cells.new_tensor([after])] if newline else [cells]
        at = last + int(newline)
    parts.append(_kept(keep, at, len(keep)))
    return torch.cat(parts)


def _kept(keep: Tensor, start: int, end: int) -> Tensor:
    return keep[start:end].nonzero()[:, 0] + start


class Compact(NamedTuple):
    """Where the remaining positions come from, padded on the left.

    Attributes:
        index: int64 ``[B, L']``, positions in the full prompt; 0 at padding.
        mask: int64 ``[B, L']``, 0 at padding.
    """

    index: Int[Tensor, "batch kept"]
    mask: Int[Tensor, "batch kept"]

    @classmethod
    def of(cls, kept: Sequence[Int[Tensor, " _"]]) -> Compact:
        """Put the kept positions of each prompt at its right end."""
        index = pad_sequence(list(kept), batch_first=True, padding_side="left")
        mask = pad_sequence(
            [torch.ones_like(row) for row in kept], batch_first=True, padding_side="left"
        )
        return cls(index, mask)

    def gather(self, values: Tensor) -> Tensor:
        """``[B, L, ...]`` to ``[B, L', ...]``."""
        index = self.index.view(*self.index.shape, *[1] * (values.ndim - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    def scatter(self, values: Tensor, length: int) -> Tensor:
        """``[B, L', ...]`` back to ``[B, length, ...]``, zero where nothing remained.

        Of a newline that is read several times the last reading counts.
        """
        order = torch.arange(1, self.index.shape[1] + 1, device=values.device) * self.mask
        last = order.new_zeros(len(order), length)
        last = last.scatter_reduce(1, self.index, order, "amax")  # 0: nothing remained
        padded = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
        last = last.view(*last.shape, *[1] * (values.ndim - 2))
        return padded.gather(1, last.expand(-1, -1, *values.shape[2:]))

    def scatter_output(self, output: Any, length: int) -> None:
        """A language model's output back to the prompt's full length, in place: hidden states, and
        attentions on both sides."""
        output.last_hidden_state = self.scatter(output.last_hidden_state, length)
        if output.hidden_states is not None:
            output.hidden_states = tuple(self.scatter(h, length) for h in output.hidden_states)
        if output.attentions is not None:
            output.attentions = tuple(
                self.scatter(self.scatter(a.movedim(1, 3), length).transpose(1, 2), length).permute(
                    0, 3, 2, 1
                )
                for a in output.attentions
            )

    def positions(self) -> Int[Tensor, "batch kept"]:
        """Position ids: 0 at each prompt's first remaining token."""
        return (self.mask.cumsum(-1) - 1).clamp_min(0)
