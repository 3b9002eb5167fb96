"""From characters to the tokens they spell: the part of a page encoder that knows no pixels.

A text line is a sequence of *soft characters*, distributions over an alphabet. At each character
the speller says how long the token is that would start there, and gives a feature from which ALIGN
tells which. Where tokens do start follows: each begins where the one before it ends, so whatever
the speller takes for a token, no character is left out. It looks at the rest of a word and at
nothing else, so it can be trained on plain text, a thousand tokens a second, before it sees a page
(:mod:`alignvlm.train.spelling`).

Two paths lead from characters to a feature. A perceptron sees the soft characters, doubts included,
and is what gradients flow through to the pixels. A memory has a vector for each beginning of a word
("t", "to", "tou", "touc", ...; hashed, as fastText does with n-grams, arXiv 1607.04606): 48,000
tokens are too many for a small perceptron to tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

BEFORE, AFTER = 1, 16
"""Characters seen before a character, and from it on (itself included); tokens are no longer."""


BUCKETS, MEMORY_WIDTH = 2**17, 128
"""Vectors of the memory of beginnings, and their width."""
MULTIPLIER, MODULUS = 1_000_003, 2**31 - 1
"""Of the rolling hash; products stay below 2**63."""


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
    """Soft characters ``[L, alphabet]`` to features ``[L, width]`` and lengths of tokens.

    Args:
        alphabet: characters that can be told apart.
        width: channels of the features.
        depth: perceptrons.
        space: the alphabet's index of the space.
        char_width: channels of an embedded character.
    """

    def __init__(
        self, alphabet: int, width: int, depth: int = 3, space: int = 0, char_width: int = 32
    ) -> None:
        super().__init__()
        self.space = space
        window = (BEFORE + AFTER) * char_width
        self.embed = nn.Linear(alphabet, char_width, bias=False)
        self.window = nn.Linear(window, width)
        # the last vector is for what is no beginning
        self.memory = nn.EmbeddingBag(BUCKETS + 1, MEMORY_WIDTH, mode="sum", padding_idx=BUCKETS)
        self.recall = nn.Linear(MEMORY_WIDTH, width, bias=False)
        self.blocks = nn.Sequential(*(Perceptron(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.length = nn.Linear(width, 1 + AFTER)

    def windows(self, chars: Float[Tensor, "*b l alphabet"]) -> Float[Tensor, "*b l window"]:
        """Embedded characters from the one before each character to the end of its word.

        No token reaches further, so nothing else can matter: the same word gives the same features
        wherever it stands. Zeros beyond.
        """
        x = F.pad(self.embed(chars), (0, 0, BEFORE, AFTER - 1))
        x = x.unfold(-2, BEFORE + AFTER, 1).transpose(-1, -2)
        return (x * self._in_sight(chars)[..., None]).flatten(-2)

    def _ahead(self, chars: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest characters ``[*b, l]`` and, from each on, ``[*b, l, k]``; and which of
        these are of its word."""
        kinds = chars.argmax(-1)
        kinds[~chars.any(-1)] = self.space  # beyond the line
        ahead = F.pad(kinds, (0, AFTER - 1), value=self.space).unfold(-1, AFTER, 1)
        return kinds, ahead, (ahead != self.space).long().cumprod(-1).bool()

    @torch.no_grad()
    def _in_sight(self, chars: Tensor) -> Bool[Tensor, "*b l k"]:
        """The character before, the word, and one character after its end."""
        _, _, inside = self._ahead(chars)
        seen = F.pad(inside[..., :-1], (BEFORE + 1, 0), value=True)
        seen[..., BEFORE + 1] = True  # what follows a space decides to which token it belongs
        return seen

    @torch.no_grad()
    def beginnings(self, chars: Float[Tensor, "*b l alphabet"]) -> Int[Tensor, "*b l k"]:
        """Bucket of each beginning of the word that starts, or goes on, at each character.

        The likeliest characters count, and whether a space stands before the first.
        """
        kinds, ahead, inside = self._ahead(chars)
        after_space = F.pad(kinds, (1, 0), value=self.space)[..., :-1] == self.space
        value = after_space.long()
        buckets = []
        for k in range(AFTER):
            value = (value * MULTIPLIER + ahead[..., k] + 1) % MODULUS
            buckets.append(value % BUCKETS)
        return torch.stack(buckets, -1).masked_fill(~inside, BUCKETS)

    def features(
        self, windows: Float[Tensor, "*n window"], beginnings: Int[Tensor, "*n k"]
    ) -> Float[Tensor, "*n width"]:
        """What starts at each character, for ALIGN."""
        recalled = self.memory(beginnings.flatten(0, -2)).view(*beginnings.shape[:-1], -1)
        return self.norm(self.blocks(self.window(windows) + self.recall(recalled)))

    def lengths(self, features: Float[Tensor, "*n width"]) -> Float[Tensor, "*n length"]:
        """Logits of the number of characters of the token that starts, if one starts there.

        0: none does, the character (a space) belongs to the token after it.
        """
        return self.length(features)


def chain(lengths: Sequence[int]) -> list[int]:
    """Where tokens start in a line whose characters have these lengths: end to end from the left.

    >>> chain([3, 1, 2, 0, 2, 1])
    [0, 4]
    """
    starts, at = [], 0
    while at < len(lengths):
        if lengths[at] > 0:
            starts.append(at)
        at += max(int(lengths[at]), 1)
    return starts


def start_probabilities(lengths: Float[Tensor, "l length"]) -> Float[Tensor, "l"]:
    """Probability that a token starts at each character of a line, given logits of lengths.

    The chain with every length at once: ``reached[j] = Σ_k reached[j - k] p[j - k, k]``.
    Differentiable; :func:`chain` follows the likeliest lengths.
    """
    p = lengths.softmax(-1)
    # no token and a token of one character both lead to the next one
    steps = torch.cat([p[:, 0:1] + p[:, 1:2], p[:, 2:]], 1)
    ahead = F.pad(steps.new_ones(1), (0, AFTER - 1))  # mass that arrives here, one further, ...
    reached = []
    for step in steps:
        reached.append(ahead[0])
        ahead = F.pad(ahead[1:], (0, 1)) + ahead[0] * step
    return torch.stack(reached) * (1 - p[:, 0])
