"""Words of a page that answer a question, with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..reader.page import Box


class SpanWord(NamedTuple):
    """A word of a span as it is said, where it stands (page from 0, box in px of the page image),
    and what is printed there: other spaces, or small letters where capitals are said."""

    text: str
    page: int
    box: Box
    reads: str


@dataclass(frozen=True)
class Span:
    """Words that stand on the pages one after the other.

    Attributes:
        text: as it is said, with single spaces; empty for the answer that it is not there.
        words: each with its place; none for that answer.
        log_probability: that the page was read right here, nats.
    """

    text: str
    words: list[SpanWord]
    log_probability: float

    @property
    def boxes(self) -> list[tuple[int, Box]]:
        """Page and box of the span on each page and row that it runs over."""
        found: list[tuple[int, Box]] = []
        for _, page, box, _ in self.words:
            if found and found[-1][0] == page and _beside(found[-1][1], box):
                box = union([found.pop()[1], box])
            found.append((page, box))
        return found


def _beside(first: Box, second: Box) -> bool:
    middle = (second[1] + second[3]) / 2
    return first[1] <= middle <= first[3]


def union(boxes: Sequence[Sequence[float]]) -> Box:
    """The least box around some."""
    x0, y0, x1, y1 = zip(*boxes)
    return min(x0), min(y0), max(x1), max(y1)
