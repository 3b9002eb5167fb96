"""Lines read, each the right way up.

A page is read level first. Where most of it makes no sense that way (it lies on its head), or where
single lines do not (a stamp, a turned table head), they are read again turned, and the surer
reading counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .boxes import Boxes
from .crops import Page, batches, widths
from .decode import Decoded, decode

DOUBTFUL, SURER = 0.8, 0.08
"""A line whose characters are surer than that on average is right; another way of reading it must
be surer by that much."""
SAMPLE = 6
"""Lines by which it is decided whether a page stands on its head."""
LONE = 24
"""Doubtful lines of a page that are read again one by one, at most: the longest."""


@dataclass(frozen=True)
class Line:
    """A line as read.

    Attributes:
        box: where it was, alone in its :class:`Boxes`.
        width: of its cut-out, px.
        read: its characters.
    """

    box: Boxes
    width: int
    read: Decoded

    @property
    def sureness(self) -> float:
        """Mean probability of the characters; 0 where there are none."""
        return float(self.read.probability.mean()) if len(self.read.probability) else 0.0


class Recogniser:
    """Reads boxes of a page.

    Args:
        logits: of lines ``[lines, 3, 48, width]``, ``[lines, columns, alphabet]``.
        alphabet: its characters after CTC's blank.
        progress: called after each batch with the lines read and their number. It may raise, to
            end the work.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        alphabet: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.logits = logits
        self.progress = progress
        self.space = alphabet.index(" ") + 1
        self.digits = frozenset(i for i, char in enumerate(alphabet, start=1) if char.isdigit())
        self.points = frozenset(i for i, char in enumerate(alphabet, start=1) if char in ".,:")

    def __call__(self, page: Page, boxes: Boxes) -> list[Line]:
        """Each box's line, read the way up in which it makes most sense."""
        lines = self.read(page, boxes)
        sureness = np.array([line.sureness for line in lines])
        length = boxes.size[:, 0]
        if (length * (sureness < DOUBTFUL)).sum() > 0.5 * length.sum():
            lines = self._turn_page(page, boxes, lines, sureness)
            sureness = np.array([line.sureness for line in lines])
        doubtful = np.flatnonzero(sureness < DOUBTFUL)
        doubtful = doubtful[np.argsort(-length[doubtful], kind="stable")][:LONE]
        self._try(page, lines, doubtful, 2)
        short = [i for i in doubtful if self._squarish(lines[i].box)]
        for quarters in (1, 3):
            self._try(page, lines, np.array(short, np.int64), quarters)
        return lines

    def _turn_page(
        self, page: Page, boxes: Boxes, lines: list[Line], sureness: NDArray
    ) -> list[Line]:
        """All lines turned on their heads, if a sample of long ones reads better so."""
        sample = np.argsort(-boxes.size[:, 0], kind="stable")[:SAMPLE]
        again = self.read(page, boxes.take(sample).turned(2))
        if np.mean([line.sureness for line in again]) < sureness[sample].mean() + SURER:
            return lines
        return self.read(page, boxes.turned(2))

    def _try(self, page: Page, lines: list[Line], index: NDArray, quarters: int) -> None:
        """Read some lines turned, and keep what is surer."""
        if not len(index):
            return
        turned = joined([lines[i].box for i in index]).turned(quarters)
        for i, line in zip(index, self.read(page, turned)):
            if line.sureness > lines[i].sureness + SURER:
                lines[i] = line

    @staticmethod
    def _squarish(box: Boxes) -> bool:
        return bool(box.size[0].max() < 3 * box.size[0].min())

    def read(self, page: Page, boxes: Boxes) -> list[Line]:
        """Each box's line, read as it lies."""
        lines: list[Line | None] = [None] * len(boxes)
        width, done = widths(boxes), 0
        for index in batches(boxes):
            crops = page.cut(boxes.take(index))
            logits = self.logits(crops)
            decoded = decode(logits, crops, width[index], self.space, self.digits, self.points)
            for i, read in zip(index, decoded, strict=True):
                lines[i] = Line(boxes.take(slice(i, i + 1)), int(width[i]), read)
            done += len(index)
            if self.progress is not None:
                self.progress(done, len(boxes))
        return [line for line in lines if line is not None]


def joined(boxes: list[Boxes]) -> Boxes:
    """Several boxes as one list."""
    return Boxes(
        np.concatenate([b.centre for b in boxes]),
        np.concatenate([b.size for b in boxes]),
        np.concatenate([b.angle for b in boxes]),
    )
