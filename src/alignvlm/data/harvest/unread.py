"""Ink that no word explains: what a page shows and its text does not say.

Outlined text, stamps, pictures, handwriting, words that were left out: whether such ink is text is
not known, so its cells are neither taught nor scored as blank. Rules, frames and the edges of
filled areas are known to be no text, and stay blank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from ...documents.words import Word

Box = tuple[float, float, float, float]

CONTRAST = 40
"""Grey levels between neighbouring pixels from which there is ink: flat areas have none, whatever
their colour."""
MARGIN = 0.15, 2
"""Room around a word's box that is its own: of the box's height, and at least px."""
RULE_LENGTH, RULE_SHAPE = 64, 12
"""Straight ink of at least so many px, and so many times longer than thick, is a rule; strokes of
letters are shorter."""
SIDE_SHAPE = 4
"""As much longer than thick is a line from one rule to another, such as the side of a frame."""
BLOCK, BOXES = 4, 1000
"""Side of the squares that boxes are made of, px; doubled until a page has at most so many."""


def unread_ink(image: Image.Image, words: Sequence[Word]) -> list[Box]:
    """Boxes around ink that is neither a rule nor under a word, in px of the image.

    Args:
        image: a page.
        words: everything that is known to be written on it.
    """
    ink = visible_ink(image)
    ink &= ~rules(ink)
    for word in words:
        x0, y0, x1, y1 = word.box
        room = max(MARGIN[0] * (y1 - y0), MARGIN[1])
        top, left = max(math.floor(y0 - room), 0), max(math.floor(x0 - room), 0)
        ink[top : max(math.ceil(y1 + room), 0), left : max(math.ceil(x1 + room), 0)] = False
    block = BLOCK
    while len(found := boxes_of(ink, block)) > BOXES:
        block *= 2
    return found


def visible_ink(image: Image.Image) -> NDArray[np.bool_]:
    """Where neighbouring pixels differ, in any colour: the outlines of all that is drawn."""
    import cv2

    pixels = np.asarray(image.convert("RGB"))
    # highest minus lowest among each pixel and its eight neighbours
    contrast = cv2.morphologyEx(pixels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    red, green, blue = cv2.split(contrast)
    return np.maximum(np.maximum(red, green), blue) >= CONTRAST


def rules(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those pixels of ink that belong to long, thin, level or upright lines, or join two of them as
    the sides of a frame do."""
    found = _level_rules(ink) | _level_rules(ink.T).T
    return found | _level_sides(ink, found) | _level_sides(ink.T, found.T).T


def _level_rules(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    length = run_lengths(ink)
    long = length >= RULE_LENGTH
    return long & (length >= RULE_SHAPE * run_lengths(long.T).T)


def _level_sides(ink: NDArray[np.bool_], rule: NDArray[np.bool_]) -> NDArray[np.bool_]:
    length = run_lengths(ink, at_both_ends=rule)
    return (length > 0) & (length >= SIDE_SHAPE * run_lengths((length > 0).T).T)


def run_lengths(
    mask: NDArray[np.bool_], at_both_ends: NDArray[np.bool_] | None = None
) -> NDArray[np.int32]:
    """For each pixel how many true ones stand in a row with it, from left to right; 0 if false.

    Args:
        at_both_ends: only runs whose first and last pixel are true in this one, too.
    """
    padded = np.zeros((2, mask.shape[0], mask.shape[1] + 1), dtype=np.int8)
    padded[0, :, :-1] = mask
    steps = np.diff(padded[0].ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    if at_both_ends is not None:
        padded[1, :, :-1] = at_both_ends
        chosen = padded[1].ravel()
        kept = (chosen[starts] & chosen[ends - 1]) > 0
        starts, ends = starts[kept], ends[kept]
    change = np.zeros(steps.size, dtype=np.int32)
    change[starts] = ends - starts
    change[ends] = starts - ends
    return np.cumsum(change, dtype=np.int32).reshape(padded.shape[1:])[:, :-1]


def boxes_of(ink: NDArray[np.bool_], block: int) -> list[Box]:
    """Rectangles that together cover the squares of ``block`` px in which there is ink."""
    high, wide = (-(-side // block) for side in ink.shape)
    padded = np.zeros((high * block, wide * block), dtype=bool)
    padded[: ink.shape[0], : ink.shape[1]] = ink
    squares = np.logical_or.reduce(padded.reshape(high, block, wide, block), axis=(1, 3))
    found: list[Box] = []
    open_: dict[tuple[int, int], int] = {}  # columns of a rectangle that may go on, and its top
    for row in range(high + 1):
        runs = _runs(squares[row]) if row < high else []
        for columns in [key for key in open_ if key not in runs]:
            top = open_.pop(columns)
            corners = (columns[0], top, columns[1], row)
            found.append(tuple(float(side * block) for side in corners))  # type: ignore[arg-type]
        for columns in runs:
            open_.setdefault(columns, row)
    return found


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one past the last index of each run of true values."""
    steps = np.diff(row.astype(np.int8), prepend=0, append=0)
    pairs = zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True)
    return [(int(start), int(end)) for start, end in pairs]
