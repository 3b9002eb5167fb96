"""The order in which a page's pieces of text are read.

Detected pieces lie side by side (the cells of a form's or table's row) or stand in columns of
running text. Rows are read across, columns down: a *gutter* that several full lines on both sides
respect makes columns, the gaps between a table's short cells do not.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    prose = np.array([_prose(text) for text in texts or [""] * len(boxes)])
    blocks = _blocks(pieces, prose, np.arange(len(boxes)))
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
    for index in sorted(block, key=lambda i: middle[i]):
        row = _row_of(index, rows, pieces, middle, height)
        if row is None:
            rows.append([int(index)])
        else:
            row.append(int(index))
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
    return -_apart(a, b) > 0.5 * min(a[2] - a[0], b[2] - b[0])


def _blocks(pieces: NDArray, prose: NDArray, block: NDArray) -> list[NDArray]:
    """A block split at its gutters: what stands above, the columns, what stands below."""
    found = _columns(pieces, prose, block)
    if found is None:
        return [block]
    return [part for piece in found if len(piece) for part in _blocks(pieces, prose, piece)]


def _columns(pieces: NDArray, prose: NDArray, block: NDArray) -> Sequence[NDArray] | None:
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
            goes_on = _goes_on(prose[np.append(left, right)])
            if _runs(pieces, left, goes_on) and _runs(pieces, right, goes_on):
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


def _prose(text: str) -> int:
    """0: one word, or none; 1: several words; 2: several, the first in small letters."""
    return 0 if len(text.split()) < 2 else 1 + text[0].islower()


def _goes_on(prose: NDArray) -> bool:
    several = prose > 0
    return bool(several.mean() >= SEVERAL and (prose[several] == 2).mean() >= GOING_ON)


def _runs(pieces: NDArray, column: NDArray, goes_on: bool) -> bool:
    """Whether a column is running text: enough lines, most of them full.

    Args:
        goes_on: whether lines go on like sentences.
    """
    if len(column) < GUTTER_LINES:
        return False
    length = pieces[column, 2] - pieces[column, 0]
    height = pieces[column, 3] - pieces[column, 1]
    width = _widths(pieces[column])
    share, ems = (RAGGED, SHORT) if goes_on else (FULL, LONG)
    full = (length > share * width) & (length > ems * height)
    return bool(full.mean() >= FULL_LINES)


def _widths(pieces: NDArray) -> NDArray[np.float64]:
    """Width of the column that each piece stands in: two of three columns are no wide one."""
    order = np.argsort(pieces[:, 0], kind="stable")
    left, reach = pieces[order, 0], np.maximum.accumulate(pieces[order, 2])
    starts = np.flatnonzero(np.append(True, left[1:] > reach[:-1]))
    ends = np.append(starts[1:], len(order))
    result = np.empty(len(order))
    result[order] = np.repeat(reach[ends - 1] - left[starts], ends - starts)
    return result
