"""The cells of a page: tiles laid side by side, and tokens laid into cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError

MAX_SHIFT = 2
"""Cells a token moves right at most when the cell it starts in is taken, before it looks elsewhere
(:mod:`alignvlm.data.ground` lays targets by the same rule)."""
INSIDE = 0.5
"""Px by which a left edge is moved inwards: an edge on a cell's border lies right of it."""


def page_grids(image_grids: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of tiles of each page; a thumbnail is a page of one tile."""
    result = []
    for rows, cols, thumbnail in image_grids.tolist():
        result += [(rows, cols)] + [(1, 1)] * bool(thumbnail)
    return result


def join_tiles(
    tiles: Float[Tensor, "tiles 3 height width"], rows: int, cols: int
) -> Float[Tensor, "3 page_height page_width"]:
    """Tiles laid side by side, row by row."""
    _, channels, high, wide = tiles.shape
    page = tiles.view(rows, cols, channels, high, wide).permute(2, 0, 3, 1, 4)
    return page.reshape(channels, rows * high, cols * wide)


def split_tiles(
    features: Float[Tensor, "d page_rows page_cols"], rows: int, cols: int
) -> Float[Tensor, "tiles d r c"]:
    """Cells of a page as those of its tiles."""
    width, high, wide = features.shape
    tiles = features.view(width, rows, high // rows, cols, wide // cols)
    return tiles.permute(1, 3, 0, 2, 4).reshape(rows * cols, width, high // rows, wide // cols)


def place(
    starts: NDArray[np.float32], cell: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.int64]:
    """A cell for each token, no two in one.

    The token goes where it starts; if that cell is taken, up to ``MAX_SHIFT`` cells right of it;
    else to the nearest free cell. Its place in the reading order is kept elsewhere.

    Args:
        starts: ``[n, 2]``, x of the first visible character's left edge and y of the middle of the
            line, px.
        cell: height and width of a cell, px.
        size: rows and columns of cells.

    Returns:
        ``[n]``, cells counted row by row.

    Raises:
        DataError: more tokens than cells.
    """
    rows, cols = size
    if len(starts) > rows * cols:
        raise DataError(
            f"the page holds {len(starts)} tokens, more than its {rows * cols} cells: give its "
            "image at a higher resolution"
        )
    taken = np.zeros(size, bool)
    result = np.zeros(len(starts), np.int64)
    for number, (x, y) in enumerate(starts):
        row = min(max(int(y // cell[0]), 0), rows - 1)
        col = min(max(int((x + INSIDE) // cell[1]), 0), cols - 1)
        row, col = next(spot for spot in _spots(row, col, size) if not taken[spot])
        taken[row, col] = True
        result[number] = row * cols + col
    return result


def _spots(row: int, col: int, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Cells in the order in which a token tries them."""
    rows, cols = size
    for shift in range(MAX_SHIFT + 1):
        if col + shift < cols:
            yield row, col + shift
    for distance in range(1, rows + cols):
        # a row is twice as high as a cell is wide
        for down in range(-(distance // 2), distance // 2 + 1):
            for right in {distance - 2 * abs(down), 2 * abs(down) - distance}:
                if 0 <= row + down < rows and 0 <= col + right < cols:
                    yield row + down, col + right
    for index in range(rows * cols):
        yield divmod(index, cols)
