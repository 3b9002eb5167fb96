"""The loss on P_vocab: which token belongs under each visual token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..connectors import Connector, VisualTokens

IGNORE = -100
"""Target of a cell that is not scored."""


class VocabLoss(NamedTuple):
    """Loss on P_vocab and its two parts (nats); a part without cells is 0."""

    loss: Tensor
    text: Tensor
    blank: Tensor


def combine(nll: Tensor, targets: Tensor, blank_id: int | None, blank_weight: float) -> VocabLoss:
    """Mean over text cells plus ``blank_weight`` times the mean over blank cells.

    Most cells of a page are blank; averaging the two kinds apart keeps the few text cells from
    drowning.

    Args:
        nll: ``[n]``, negative log-likelihood of each cell's target.
        targets: int64 ``[n]``; negative: not scored.
        blank_id: the id that means "nothing starts here".
        blank_weight: weight of the blank cells' mean.
    """
    scored = targets >= 0
    blank = scored & (targets == blank_id) if blank_id is not None else torch.zeros_like(scored)
    text = scored & ~blank
    text_loss = (nll * text).sum() / text.sum().clamp_min(1)
    blank_loss = (nll * blank).sum() / blank.sum().clamp_min(1)
    return VocabLoss(text_loss + blank_weight * blank_loss, text_loss, blank_loss)


def loss_of(
    read: VisualTokens,
    targets: Int[Tensor, "tiles tokens"],
    blank_id: int | None,
    blank_weight: float,
) -> VocabLoss:
    """The loss of visual tokens that were read with these targets."""
    assert read.target_log_p is not None
    return combine(-read.target_log_p.flatten(), targets.flatten(), blank_id, blank_weight)


def vocab_loss(
    connector: Connector,
    features: Float[Tensor, "tiles rows cols d_vision"],
    targets: Int[Tensor, "tiles tokens"],
    blank_id: int | None,
    blank_weight: float,
) -> VocabLoss:
    """The loss without a language model in the loop.

    Only scored cells are projected, equal ones once, and the mixture P·E is never computed.
    """
    flat, wanted = features.flatten(0, 2), targets.flatten()
    scored = (wanted >= 0).nonzero()[:, 0]
    chosen = wanted[scored][None]
    read = connector.read(flat[scored][None, :, None], None, chosen)
    return loss_of(read, chosen, blank_id, blank_weight)
