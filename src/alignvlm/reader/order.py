"""The order in which a page's pieces of text are read.

Detected pieces lie side by side (the cells of a form's or table's row) or stand in columns of
running text. Rows are read across, columns down: a *gutter* that several full lines on both sides
respect makes columns, the gaps between a table's short cells do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .boxes import Boxes, weighted_median

OVERLAP = 0.5
"""Pieces whose middles are nearer than this share of the lower one's height stand in one row."""
GUTTER_LINES = 4
"""Lines that a gutter must have on each side."""
FULL, RAGGED = 0.6, 0.4
"""A line of running text fills at least that share of its column (the second where words are long
against the column) ..."""
FULL_LINES = 0.6
"""... and at least that share of a column's lines do."""
LONG, SHORT = 9.0, 3.0
"""Full lines that are that many times as long as high are running text: a table's cells are
shorter. Lines between the two must also go on like sentences."""
GOING_ON, SEVERAL = 0.3, 0.5
"""Sentences go on where that share of the lines of several words starts with a small letter, as
cells of a table seldom do, and that share of the lines has several words."""
BROKEN, WORDS, PHRASES = 0.7, 0.85, 0.1
"""Lines of large print hold a word or two. They are running text where the first word of the next
line would not have fitted behind that share of them, that share has no digits, that share several
words, and ``GOING_ON`` of them start with a small letter."""


def reading_order(boxes: Boxes, texts: Sequence[str] | None = None) -> list[list[int]]:
    """Rows of pieces in reading order, each row from left to right.

    Args:
        boxes: the pieces, px; those at odd angles are placed by their middles.
        texts: what they say, which tells columns of large print from tables.

    Returns:
        Indices of boxes; every box is in one row.
    """
    if not len(boxes):
        return []
    pieces = _straightened(boxes)
    said = _Said.of(texts or [""] * len(boxes))
    blocks = _blocks(pieces, said, np.arange(len(boxes)))
    return [row for block in blocks for row in _rows(pieces, block)]


def _straightened(boxes: Boxes) -> NDArray[np.float64]:
    """Left, top, right, bottom of each piece once the page's slant is taken out; ``[n, 4]``."""
    slant = page_slant(boxes)
    cos, sin = np.cos(slant), np.sin(slant)
    corners = boxes.corners() @ np.array([[cos, -sin], [sin, cos]])
    x, y = corners[..., 0], corners[..., 1]
    # pieces along the text keep their height; of others the outer box would cover too many rows
    height = np.minimum(y.max(1) - y.min(1), np.maximum(boxes.size.min(1), 1.0))
    middle = (y.max(1) + y.min(1)) / 2
    return np.stack([x.min(1), middle - height / 2, x.max(1), middle + height / 2], 1)


def page_slant(boxes: Boxes) -> float:
    """Median angle of the pieces that lie about level, long ones counting more; radians."""
    level = np.abs(boxes.angle) < np.pi / 6
    if not level.any():
        return 0.0
    return weighted_median(boxes.angle[level], boxes.size[level, 0])


def _rows(pieces: NDArray, block: NDArray) -> list[list[int]]:
    """A block's rows from top to bottom."""
    middle = (pieces[:, 1] + pieces[:, 3]) / 2
    height = pieces[:, 3] - pieces[:, 1]
    rows: list[list[int]] = []
    for index in sorted(map(int, block), key=lambda i: middle[i]):
        row = _row_of(index, rows, pieces, middle, height)
        if row is None:
            rows.append([index])
        else:
            row.append(index)
    rows.sort(key=lambda row: float(np.mean(middle[row])))
    return [sorted(row, key=lambda i: float(pieces[i, 0])) for row in rows]


def _row_of(
    index: int, rows: list[list[int]], pieces: NDArray, middle: NDArray, height: NDArray
) -> list[int] | None:
    """The row that a piece belongs to, among those found so far."""
    best, nearest = None, np.inf
    for row in rows[-6:]:
        # the piece next to it says where the row is: rows may climb over a wide page
        near = min(row, key=lambda i: _apart(pieces[i], pieces[index]))
        distance = abs(middle[near] - middle[index])
        lower = min(height[near], height[index])
        overlaps = any(_covers(pieces[i], pieces[index]) for i in row)
        if not overlaps and distance < OVERLAP * lower and distance < nearest:
            best, nearest = row, distance
    return best


def _apart(a: NDArray, b: NDArray) -> float:
    """Horizontal distance between two pieces; negative where they overlap."""
    return float(max(a[0], b[0]) - min(a[2], b[2]))


def _covers(a: NDArray, b: NDArray) -> bool:
    """Whether two pieces stand one over the other rather than side by side; boxes of neighbouring
    cells may touch."""
    return bool(-_apart(a, b) > 0.5 * min(a[2] - a[0], b[2] - b[0]))


def _blocks(pieces: NDArray, said: _Said, block: NDArray) -> list[NDArray]:
    """A block split at its gutters: what stands above, the columns, what stands below."""
    found = _columns(pieces, said, block)
    if found is None:
        return [block]
    return [part for piece in found if len(piece) for part in _blocks(pieces, said, piece)]


def _columns(pieces: NDArray, said: _Said, block: NDArray) -> Sequence[NDArray] | None:
    """What stands above, left, right and below of a gutter; ``None`` if there is none.

    A gutter is a vertical line at the end of many pieces. Around it the tallest band is taken
    that no piece crosses.
    """
    if len(block) < 2 * GUTTER_LINES:
        return None
    best, most = None, 0
    for x in _gutters(pieces[block]):
        crossing = block[(pieces[block, 0] < x) & (pieces[block, 2] > x)]
        edges = np.sort((pieces[crossing, 1] + pieces[crossing, 3]) / 2)
        middles = (pieces[block, 1] + pieces[block, 3]) / 2
        for top, bottom in zip(np.append(-np.inf, edges), np.append(edges, np.inf)):
            inside = (middles > top) & (middles < bottom)
            left = block[inside & (pieces[block, 2] <= x)]
            right = block[inside & (pieces[block, 0] >= x)]
            count = min(len(left), len(right))
            if count <= most:
                continue
            if _running(pieces, said, left, right):
                above, below = block[middles <= top], block[middles >= bottom]
                best, most = (above, left, right, below), count
    return best


def _gutters(pieces: NDArray) -> list[float]:
    """x of the middles of the widest gaps between the pieces' right and left edges."""
    rights = np.sort(pieces[:, 2])
    found = set()
    for right in np.unique(np.ceil(rights / 4) * 4):
        starts = pieces[pieces[:, 0] > right, 0]
        if len(starts) >= GUTTER_LINES and (pieces[:, 2] <= right).sum() >= GUTTER_LINES:
            found.add(float(right + starts.min()) / 2)
    return sorted(found)


class _Said(NamedTuple):
    """What the pieces' texts tell about where lines break, for each piece.

    Attributes:
        several: whether it has several words.
        small: whether its first letter is a small one.
        plain: whether it has no digits.
        head: share of it that its first word and the space before that would take.
    """

    several: NDArray[np.bool_]
    small: NDArray[np.bool_]
    plain: NDArray[np.bool_]
    head: NDArray[np.float64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Said:
        """Of some texts."""
        words = [text.split() for text in texts]
        return cls(
            np.array([len(own) > 1 for own in words]),
            np.array([bool(own) and own[0][0].islower() for own in words]),
            np.array([not any(char.isdigit() for char in text) for text in texts]),
            np.array([(len(own[0]) + 1) / len(t) if own else 1.0 for own, t in zip(words, texts)]),
        )


def _running(pieces: NDArray, said: _Said, left: NDArray, right: NDArray) -> bool:
    """Whether what stands left and right of a gutter is running text."""
    if min(len(left), len(right)) < GUTTER_LINES:
        return False
    both = np.append(left, right)
    goes_on = _goes_on(said, both)
    if _runs(pieces, left, goes_on) and _runs(pieces, right, goes_on):
        return True
    shares = (said.small, GOING_ON), (said.plain, WORDS), (said.several, PHRASES)
    return all(kind[both].mean() >= least for kind, least in shares) and all(
        _broken(pieces[side], said.head[side]) for side in (left, right)
    )


def _goes_on(said: _Said, lines: NDArray) -> bool:
    several = said.several[lines]
    small = said.small[lines][several]
    return bool(several.mean() >= SEVERAL and small.mean() >= GOING_ON)


def _broken(lines: NDArray, head: NDArray) -> bool:
    """Whether lines of text end where the next word did not fit, most of them.

    Args:
        lines: left, top, right, bottom of each.
        head: share of each that its first word and a space take.
    """
    full = []
    for stack in _stacks(lines):
        stack = stack[np.argsort(lines[stack, 1] + lines[stack, 3], kind="stable")]
        length = lines[stack, 2] - lines[stack, 0]
        needed = length[:-1] + (head[stack] * length)[1:]
        full.extend(needed > length.max())
    return bool(full) and float(np.mean(full)) >= BROKEN


def _runs(pieces: NDArray, column: NDArray, goes_on: bool) -> bool:
    """Whether most lines of a column are as long as those of running text.

    Args:
        goes_on: whether lines go on like sentences.
    """
    length = pieces[column, 2] - pieces[column, 0]
    height = pieces[column, 3] - pieces[column, 1]
    width = _widths(pieces[column])
    share, ems = (RAGGED, SHORT) if goes_on else (FULL, LONG)
    full = (length > share * width) & (length > ems * height)
    return bool(full.mean() >= FULL_LINES)


def _widths(pieces: NDArray) -> NDArray[np.float64]:
    """Width of the column that each piece stands in: two of three columns are no wide one."""
    result = np.empty(len(pieces))
    for stack in _stacks(pieces):
        result[stack] = pieces[stack, 2].max() - pieces[stack, 0].min()
    return result


def _stacks(pieces: NDArray) -> list[NDArray[np.int64]]:
    """Pieces by column: what white space from top to bottom separates."""
    order = np.argsort(pieces[:, 0], kind="stable")
    left, reach = pieces[order, 0], np.maximum.accumulate(pieces[order, 2])
    return np.split(order, np.flatnonzero(left[1:] > reach[:-1]) + 1)
