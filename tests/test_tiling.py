"""Grids, cutting and page order, against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignvlm.errors import ConfigError
from alignvlm.tiling import (
    ENOUGH_COVERAGE,
    Grid,
    choose_grid,
    coverage,
    covering_grid,
    cut,
    fit_scale,
    fit_size,
    padding_share,
    page_order,
    token_row_lengths,
)

grids = st.builds(Grid, st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (595, 842, (3, 2)),  # A4 at 72 dpi
        (842, 595, (2, 3)),  # the same page turned
        (1654, 2339, (3, 3)),  # A4 at 200 dpi: 3x2 would keep 89% of what 3x3 keeps
        (384, 384, (1, 1)),
        (768, 768, (2, 2)),
        (5000, 5000, (3, 3)),
        (1, 1, (1, 1)),
        (10000, 10, (1, 9)),
        (10, 10000, (9, 1)),
        (1152, 384, (1, 3)),
    ],
)
def test_choose_grid_of_known_pages(width, height, grid):
    assert choose_grid(width, height, 384, 384) == grid


def brute_force(width, height, tile_width, tile_height, max_tiles, min_tiles):
    """The fewest tiles that keep 90% of what the best grid keeps; then the least padding."""
    candidates = [
        Grid(rows, cols)
        for rows in range(1, max_tiles + 1)
        for cols in range(1, max_tiles + 1)
        if min_tiles <= rows * cols <= max_tiles
    ]

    def kept(grid):
        scale = min(1, grid.cols * tile_width / width, grid.rows * tile_height / height)
        return scale**2

    best = max(kept(grid) for grid in candidates)
    enough = [grid for grid in candidates if kept(grid) >= ENOUGH_COVERAGE * best]
    fewest = min(grid.tiles for grid in enough)
    enough = [grid for grid in enough if grid.tiles == fewest]
    padding = [padding_share(width, height, grid, tile_width, tile_height) for grid in enough]
    return [grid for grid, share in zip(enough, padding, strict=True) if share == min(padding)]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 12000),
    st.integers(1, 12000),
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 12),
    st.data(),
)
def test_choose_grid_follows_the_rule(width, height, tile_width, tile_height, most, data):
    least = data.draw(st.integers(1, most))
    grid = choose_grid(width, height, tile_width, tile_height, most, least)
    assert least <= grid.tiles <= most
    assert grid in brute_force(width, height, tile_width, tile_height, most, least)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20000), st.integers(1, 20000), grids, st.integers(1, 400))
def test_the_fitted_page_stays_on_the_canvas_and_keeps_its_shape(width, height, grid, tile):
    new_width, new_height = fit_size(width, height, grid, tile, tile)
    assert 1 <= new_width <= grid.cols * tile
    assert 1 <= new_height <= grid.rows * tile
    scale = fit_scale(width, height, grid, tile, tile)
    assert abs(new_width - width * scale) <= 1
    assert abs(new_height - height * scale) <= 1
    assert 0 < coverage(width, height, grid, tile, tile) <= 1
    assert 0 <= padding_share(width, height, grid, tile, tile) < 1


def test_bounds_are_checked():
    with pytest.raises(ConfigError, match="min_tiles=4 is more than max_tiles=3"):
        choose_grid(100, 100, 10, 10, max_tiles=3, min_tiles=4)
    for sizes in [(0, 5, 8, 8), (5, 0, 8, 8), (5, 5, 0, 8), (5, 5, 8, -1)]:
        with pytest.raises(ConfigError, match="must be positive"):
            choose_grid(*sizes)
    with pytest.raises(ConfigError):
        choose_grid(5, 5, 8, 8, max_tiles=0)


@pytest.mark.parametrize(
    ("width", "height", "most", "grid"),
    [
        (160, 160, 9, (1, 1)),
        (161, 160, 9, (1, 2)),
        (1, 1, 1, (1, 1)),
        (600, 990, 100, (7, 4)),
        (600, 990, 28, (7, 4)),
        (600, 990, 27, (6, 4)),  # 6 x 160 of 990 px
        (160, 3200, 5, (5, 1)),
        (3200, 160, 5, (1, 5)),
        (320, 320, 3, (1, 1)),  # two tiles hold no more of it
    ],
)
def test_covering_grid_of_known_pages(width, height, most, grid):
    assert covering_grid(width, height, 160, 160, most) == grid


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 300), st.integers(1, 300),
    st.integers(1, 60),
)  # fmt: skip
@example(4, 17, 1, 1, 12)  # a column less after rounding, then two rows less
def test_covering_grid_keeps_most_of_the_page(width, height, tile_width, tile_height, most):
    tile = tile_width, tile_height
    grid = covering_grid(width, height, *tile, most)
    assert 1 <= grid.tiles <= most
    size = fit_size(width, height, grid, *tile, enlarge=False)
    whole = Grid(-(-height // tile_height), -(-width // tile_width))
    if whole.tiles <= most:
        assert grid == whole
        assert size == (width, height)
    every = [Grid(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    scales = {other: fit_scale(width, height, other, *tile, enlarge=False) for other in every}
    best = max(scales.values())
    # as large as any grid makes it, but for the rounding of its sides to whole px
    exact = best * width, best * height
    rounding = 1 + 0.5 * max(exact) / max(1, min(exact))
    assert abs(size[0] - max(1, exact[0])) <= rounding
    assert abs(size[1] - max(1, exact[1])) <= rounding
    # and no row or column of tiles is empty
    assert (grid.rows - 1) * tile_height < size[1] + 1
    assert (grid.cols - 1) * tile_width < size[0] + 1


def test_covering_grids_sizes_are_checked():
    for sizes in [
        (0, 5, 8, 8, 1),
        (5, 0, 8, 8, 1),
        (5, 5, 0, 8, 1),
        (5, 5, 8, -1, 1),
        (5, 5, 8, 8, 0),
    ]:
        with pytest.raises(ConfigError, match="must be positive"):
            covering_grid(*sizes)


def test_small_pages_keep_their_size_unless_enlarged():
    assert fit_scale(40, 20, Grid(2, 3), 28, 28) == pytest.approx(2.1)
    assert fit_scale(40, 20, Grid(2, 3), 28, 28, enlarge=False) == 1
    assert fit_size(40, 20, Grid(2, 3), 28, 28, enlarge=False) == (40, 20)
    assert fit_size(168, 28, Grid(2, 3), 28, 28, enlarge=False) == (84, 14)


@given(grids, st.integers(1, 4), st.integers(1, 4))
def test_page_order_equals_reading_the_page_cell_by_cell(grid, rows, cols):
    expected = []
    for page_row in range(grid.rows * rows):
        for page_col in range(grid.cols * cols):
            tile = (page_row // rows) * grid.cols + page_col // cols
            expected.append(tile * rows * cols + (page_row % rows) * cols + page_col % cols)
    order = page_order(grid, rows, cols)
    assert order.dtype == torch.int64
    assert order.tolist() == expected


@given(grids, st.integers(1, 3), st.integers(1, 3))
def test_cut_then_page_order_is_the_raster_order_of_cells(grid, rows, cols):
    """Number the cells of a canvas, cut it, flatten tile after tile, and read it back."""
    height, width = grid.rows * rows, grid.cols * cols
    page = np.arange(height * width).reshape(1, height, width)
    tiles = cut(page, grid, cols, rows)
    assert tiles.shape == (grid.tiles, 1, rows, cols)
    assert tiles.dtype == page.dtype
    tokens = torch.from_numpy(tiles).flatten()
    assert tokens[page_order(grid, rows, cols)].tolist() == list(range(height * width))


def test_cut_keeps_channels_apart():
    page = np.random.default_rng(0).integers(0, 256, (3, 4, 6), dtype=np.uint8)
    tiles = cut(page, Grid(2, 3), 2, 2)
    assert np.array_equal(tiles[4], page[:, 2:4, 2:4])


@given(grids, st.booleans(), st.integers(1, 5), st.integers(1, 5))
def test_row_lengths_sum_to_the_number_of_visual_tokens(grid, thumbnail, rows, cols):
    total = (grid.tiles + thumbnail) * rows * cols
    page = token_row_lengths(grid, thumbnail, rows, cols, "page")
    assert sum(page) == total
    assert len(page) == grid.rows * rows + (rows if thumbnail else 0)
    assert token_row_lengths(grid, thumbnail, rows, cols, "tile") == [total]
