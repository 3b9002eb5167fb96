"""The cells of a page: tiles laid side by side, and lines of characters laid into cells."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .characters import Line, Placed, merged

SPACE_EMS = 0.25
"""A gap between neighbours wider than this is a space, seen or not."""
MAX_SHIFT = 2
"""Cells a token may move right when the cell it starts in is taken."""
INK, INK_MARGIN = 0.12, 32
"""Contrast within a row of pixels (white is 1, black -1) from which something may be there, and how
many rows above and below it are looked at, too."""


def page_grids(image_grids: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of each page; a thumbnail is a page of one tile."""
    result = []
    for rows, cols, thumbnail in image_grids.tolist():
        result += [(rows, cols)] + [(1, 1)] * bool(thumbnail)
    return result


def join_tiles(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """``[rows * cols, 3, h, w]`` to ``[3, rows * h, cols * w]``."""
    _, channels, high, wide = tiles.shape
    page = tiles.view(rows, cols, channels, high, wide).permute(2, 0, 3, 1, 4)
    return page.reshape(channels, rows * high, cols * wide)


def split_tiles(features: Tensor, rows: int, cols: int) -> Tensor:
    """``[d, R, C]`` cells of a page to ``[rows * cols, d, R / rows, C / cols]``."""
    width, high, wide = features.shape
    tiles = features.view(width, rows, high // rows, cols, wide // cols)
    return tiles.permute(1, 3, 0, 2, 4).reshape(rows * cols, width, high // rows, wide // cols)


def inked_rows(page: Float[Tensor, "3 height width"]) -> list[tuple[float, float]]:
    """Tops and bottoms, px, of what is not blank; a page is often half so."""
    contrast = (page.amax(2) - page.amin(2)).amax(0)
    rows = (contrast > INK).nonzero()[:, 0].tolist()
    spans = merged((max(0, row - INK_MARGIN), row + 1 + INK_MARGIN) for row in rows)
    return [(top, min(bottom, page.shape[1])) for top, bottom in spans]


def read_row(
    lines: list[Line], placed: Placed, kinds: np.ndarray, space: int
) -> tuple[np.ndarray, list[float]]:
    """Emissions of one row of cells from left to right, -1 for an unseen space, and where each
    starts, px."""
    order: list[int] = []
    x: list[float] = []
    for line in sorted(lines, key=lambda line: float(placed.x[line.members[0]])):
        for member in line.members:
            is_space = kinds[member] == space
            last = order[-1] if order else None
            after_space = last is None or last == -1 or kinds[last] == space
            if is_space:
                if not after_space:
                    order.append(int(member))
                    x.append(float(placed.right[last]))
                continue
            if not after_space:
                gap = placed.x[member] - placed.right[last]
                if gap > SPACE_EMS * placed.em[member]:
                    order.append(-1)
                    x.append(float(placed.right[last]))
            order.append(int(member))
            x.append(float(placed.x[member]))
    return np.array(order, dtype=np.int64), x


def arrange(
    places: list[tuple[int, float]],
    starts: NDArray[np.bool_],
    likely: NDArray[np.bool_],
    size: tuple[int, int],
) -> tuple[list[int], list[int]]:
    """Which characters get a cell, and which: starts of tokens first, as the targets are laid.

    A start whose cell is taken moves right. In training other characters where a token may well
    start (``likely``) stand in their own cell if it is free, so that P_vocab can say that one does.
    """
    cols = size[1]
    taken: dict[int, int] = {}
    for chosen, shifts in ((starts, MAX_SHIFT + 1), (likely & ~starts, 1)):
        for index in np.flatnonzero(chosen):
            row, x = places[index]
            col = min(max(int(x + 0.05), 0), cols - 1)
            for shift in range(shifts):
                cell = row * cols + col + shift
                if col + shift < cols and cell not in taken:
                    taken[cell] = int(index)
                    break
    return list(taken.values()), list(taken)
