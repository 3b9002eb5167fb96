"""Words and their places on a page."""

from __future__ import annotations

from dataclasses import dataclass

X_MIDDLE = 0.26
"""Ems from the baseline up to the middle of small letters, in most fonts."""


@dataclass(frozen=True)
class Word:
    """One word on a page.

    Attributes:
        text: the word, without white space.
        box: ``(x0, y0, x1, y1)`` in px of the page image: x from the font's advance, y from its
            ascent and descent.
        line: index of the text line, in reading order.
        char_x: left edge in px of each character; ``len(char_x) == len(text)``.
        middle: y in px of the middle of the line's small letters, where it is known: 0.26 ems above
            the baseline.
    """

    text: str
    box: tuple[float, float, float, float]
    line: int
    char_x: tuple[float, ...]
    middle: float | None = None
