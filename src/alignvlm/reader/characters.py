"""A line of text as characters, each with its doubt."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Characters(NamedTuple):
    """One line of text as characters, in reading order.

    Attributes:
        text: the most probable character at each of n positions.
        options: n strings: the other characters that a position may be, best first; empty where it
            is sure. At most k long.
        log_ratio: float ``[n, k]``, log p(option) - log p(best) of each option, -inf where there is
            none. Gradients flow through it.

    Example:
        >>> sure = Characters("Total", ("",) * 5, torch.zeros(5, 0))
    """

    text: str
    options: tuple[str, ...]
    log_ratio: Float[Tensor, "n k"]
