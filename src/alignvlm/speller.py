"""From characters to the tokens they spell: the part of a page encoder that knows no pixels.

A text line is a sequence of *soft characters*, distributions over an alphabet. The speller says at
each character whether a token of the language model starts there, and gives a feature from which
ALIGN tells which. It looks at a window of characters and at nothing else, so it can be trained on
plain text, a thousand tokens a second, before it sees a page (:mod:`alignvlm.train.spelling`).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BEFORE, AFTER = 8, 16
"""Characters seen before a character, and from it on (itself included)."""
START_WIDTH = 512


class Perceptron(nn.Module):
    """A residual two-layer perceptron with a LayerNorm before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Speller(nn.Module):
    """Soft characters ``[L, alphabet]`` to features ``[L, width]`` and start logits ``[L]``.

    Args:
        alphabet: characters that can be told apart.
        width: channels of the features.
        depth: perceptrons.
        char_width: channels of an embedded character.
    """

    def __init__(self, alphabet: int, width: int, depth: int = 3, char_width: int = 32) -> None:
        super().__init__()
        window = (BEFORE + AFTER) * char_width
        self.embed = nn.Linear(alphabet, char_width, bias=False)
        self.start_hidden = nn.Linear(window, START_WIDTH)
        self.start = nn.Linear(START_WIDTH, 1)
        self.window = nn.Linear(window, width)
        self.blocks = nn.Sequential(*(Perceptron(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def windows(self, chars: Float[Tensor, "*b l alphabet"]) -> Float[Tensor, "*b l window"]:
        """Embedded characters around each character; zeros beyond the ends of the line."""
        x = F.pad(self.embed(chars), (0, 0, BEFORE, AFTER - 1))
        return x.unfold(-2, BEFORE + AFTER, 1).transpose(-1, -2).flatten(-2)

    def starts(self, windows: Float[Tensor, "*n window"]) -> Float[Tensor, "*n"]:
        """Log-odds that a token starts at each character."""
        return self.start(F.gelu(self.start_hidden(windows)))[..., 0]

    def features(self, windows: Float[Tensor, "*n window"]) -> Float[Tensor, "*n width"]:
        """What starts at each character, for ALIGN."""
        return self.norm(self.blocks(self.window(windows)))
