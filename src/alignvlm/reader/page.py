"""What was read on a page: rows of characters, each with its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .characters import Characters

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """A row of text: the pieces that stand side by side, a space between them.

    Attributes:
        characters: its text, and what each character may be instead.
        boxes: float32 ``[n, 4]``, left, top, right, bottom of each character, px of the page.
        probability: float32 ``[n]``, of each character.
        turned: quarter turns by which the row is turned clockwise against the page's pixels.
    """

    characters: Characters
    boxes: NDArray[np.float32]
    probability: NDArray[np.float32]
    turned: int = 0

    @property
    def text(self) -> str:
        """The most probable characters."""
        return self.characters.text

    @property
    def box(self) -> Box:
        """Left, top, right, bottom of the row, px."""
        low, high = self.boxes[:, :2].min(0), self.boxes[:, 2:].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@dataclass(frozen=True)
class PageTokens:
    """A page as tokens of the language model, in reading order.

    Attributes:
        rows: what was read.
        ids: candidates of each token, the most probable first; -1 where there are fewer.
        q: their probabilities; each row sums to 1.
        boxes: float32 ``[n, 4]``, of each token's characters, px of the page.
        cells: the cell of each token, counted row by row over the page.
        row: number of the row of text that each token belongs to.
    """

    rows: list[Row]
    ids: Int[Tensor, "n k"]
    q: Float[Tensor, "n k"]
    boxes: NDArray[np.float32]
    cells: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def text(self) -> str:
        """The page's text, a line a row."""
        return "\n".join(row.text for row in self.rows)
