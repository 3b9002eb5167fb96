"""Tiles: choosing a grid, cutting a page, and putting visual tokens back in page order (pure).

A page image is scaled, without distortion, to fit a *canvas* of whole equal *tiles*; the rest of
the canvas is padding at the right and bottom. The grid is chosen as in the two works the paper
cites. Ovis (arXiv 2405.20797): the fewest tiles that keep enough of the page's pixels (its
*coverage*). InternVL 1.5 (arXiv 2404.16821): among those, the aspect ratio nearest the page's,
that is, the least padding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ConfigError

ENOUGH_COVERAGE = 0.9
"""A smaller grid is taken when it keeps this share of what the best grid keeps (Ovis: 0.9)."""


class Grid(NamedTuple):
    """Tiles down and across."""

    rows: int
    cols: int

    @property
    def tiles(self) -> int:
        """Number of tiles, without a thumbnail."""
        return self.rows * self.cols


def fit_scale(
    width: int,
    height: int,
    grid: Grid,
    tile_width: int,
    tile_height: int,
    enlarge: bool = True,
) -> float:
    """Factor that makes a ``width x height`` px page just fit the grid's canvas; at most 1 unless
    pages are enlarged."""
    scale = min(grid.cols * tile_width / width, grid.rows * tile_height / height)
    return scale if enlarge else min(1.0, scale)


def fit_size(
    width: int,
    height: int,
    grid: Grid,
    tile_width: int,
    tile_height: int,
    enlarge: bool = True,
) -> tuple[int, int]:
    """Width and height in px of the page once scaled to fit the grid's canvas, at least 1 x 1."""
    scale = fit_scale(width, height, grid, tile_width, tile_height, enlarge)
    new_width = min(max(round(width * scale), 1), grid.cols * tile_width)
    new_height = min(max(round(height * scale), 1), grid.rows * tile_height)
    return new_width, new_height


def coverage(width: int, height: int, grid: Grid, tile_width: int, tile_height: int) -> float:
    """Share of the page's pixels kept when it is fitted into the grid, in (0, 1]."""
    scale = min(1.0, fit_scale(width, height, grid, tile_width, tile_height))
    return scale * scale


def padding_share(width: int, height: int, grid: Grid, tile_width: int, tile_height: int) -> float:
    """Share of the canvas that is padding once the page is fitted, in [0, 1)."""
    new_width, new_height = fit_size(width, height, grid, tile_width, tile_height)
    return 1 - new_width * new_height / (grid.tiles * tile_width * tile_height)


@lru_cache(maxsize=4096)
def choose_grid(
    width: int,
    height: int,
    tile_width: int,
    tile_height: int,
    max_tiles: int = 9,
    min_tiles: int = 1,
) -> Grid:
    """Pick the tile grid for a page of ``width x height`` px.

    Candidates are all grids of ``min_tiles..max_tiles`` tiles (1:1, 1:2, ... 9:1).

    Raises:
        ConfigError: a size is not positive or ``min_tiles > max_tiles``.
    """
    if min(width, height, tile_width, tile_height, min_tiles) < 1:
        raise ConfigError(
            f"sizes must be positive: page {width}x{height}, tile {tile_width}x{tile_height}, "
            f"min_tiles {min_tiles}"
        )
    if min_tiles > max_tiles:
        raise ConfigError(f"min_tiles={min_tiles} is more than max_tiles={max_tiles}")
    candidates = [
        Grid(rows, cols)
        for rows in range(1, max_tiles + 1)
        for cols in range(1, max_tiles // rows + 1)
        if rows * cols >= min_tiles
    ]
    kept = {g: coverage(width, height, g, tile_width, tile_height) for g in candidates}
    enough = ENOUGH_COVERAGE * max(kept.values())
    return min(
        (g for g in candidates if kept[g] >= enough),
        key=lambda g: (g.tiles, padding_share(width, height, g, tile_width, tile_height), -kept[g]),
    )


@lru_cache(maxsize=4096)
def covering_grid(
    width: int, height: int, tile_width: int, tile_height: int, max_tiles: int
) -> Grid:
    """The smallest grid that holds a page as it is; where ``max_tiles`` do not, the one in which it
    is scaled down least, with the fewest tiles.

    Raises:
        ConfigError: a size is not positive.
    """
    if min(width, height, tile_width, tile_height, max_tiles) < 1:
        raise ConfigError(
            f"sizes must be positive: page {width}x{height}, tile {tile_width}x{tile_height}, "
            f"max_tiles {max_tiles}"
        )
    whole = Grid(-(-height // tile_height), -(-width // tile_width))
    if whole.tiles <= max_tiles:
        return whole
    candidates = [Grid(rows, max_tiles // rows) for rows in range(1, max_tiles + 1)]
    grid = max(candidates, key=lambda g: fit_scale(width, height, g, tile_width, tile_height))
    while True:  # rounded to whole px, a page of very small tiles may fill one column less
        across, down = fit_size(width, height, grid, tile_width, tile_height)
        held = Grid(-(-down // tile_height), -(-across // tile_width))
        if held == grid:
            return grid
        grid = held


def cut(page: NDArray, grid: Grid, tile_width: int, tile_height: int) -> NDArray:
    """Cut a ``[channels, rows*tile_height, cols*tile_width]`` canvas into tiles, row by row.

    Returns:
        ``[rows*cols, channels, tile_height, tile_width]``, same dtype.
    """
    channels = page.shape[0]
    tiles = page.reshape(channels, grid.rows, tile_height, grid.cols, tile_width)
    return np.ascontiguousarray(tiles.transpose(1, 3, 0, 2, 4)).reshape(
        grid.tiles, channels, tile_height, tile_width
    )


def page_order(grid: Grid, token_rows: int, token_cols: int) -> Tensor:
    """Index that turns tile-order visual tokens into page order.

    ``tokens.flatten(0, 1)[page_order(...)]`` reads the whole page row by row, for tokens
    ``[tiles, token_rows*token_cols, d]`` laid out tile after tile.

    Returns:
        int64 ``[tiles * token_rows * token_cols]``, a permutation.
    """
    index = torch.arange(grid.tiles * token_rows * token_cols)
    index = index.view(grid.rows, grid.cols, token_rows, token_cols)
    return index.permute(0, 2, 1, 3).reshape(-1)


def token_row_lengths(
    grid: Grid, thumbnail: bool, token_rows: int, token_cols: int, order: str
) -> list[int]:
    """Visual tokens of an image as rows of the prompt.

    Page order: one entry a row of the re-assembled page, then one a row of the thumbnail.
    Tile order: one entry for the whole image. The sum is the number of placeholders.
    """
    if order == "tile":
        return [(grid.tiles + thumbnail) * token_rows * token_cols]
    rows = [grid.cols * token_cols] * (grid.rows * token_rows)
    return rows + [token_cols] * (token_rows if thumbnail else 0)
