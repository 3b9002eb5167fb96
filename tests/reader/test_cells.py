"""Tokens in cells, and tiles side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvlm.errors import DataError
from alignvlm.reader.cells import MAX_SHIFT, join_tiles, page_grids, place, split_tiles
from alignvlm.tiling import Grid, cut

CELL = (20, 10)


def placed(starts: list[tuple[float, float]], size: tuple[int, int]) -> list[tuple[int, int]]:
    cells = place(np.array(starts, np.float32).reshape(-1, 2), CELL, size)
    return [divmod(int(cell), size[1]) for cell in cells]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_two_tokens_share_a_cell(data):
    rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    x = st.floats(-30, 10 * cols + 30, width=32)
    y = st.floats(-30, 20 * rows + 30, width=32)
    starts = data.draw(st.lists(st.tuples(x, y), max_size=rows * cols))
    cells = placed(starts, (rows, cols))
    assert len(set(cells)) == len(starts)
    taken = set()
    for (left, middle), cell in zip(starts, cells, strict=True):
        assert 0 <= cell[0] < rows and 0 <= cell[1] < cols
        row = min(max(int(middle // 20), 0), rows - 1)
        col = min(max(int((left + 0.5) // 10), 0), cols - 1)
        own = [(row, col + s) for s in range(MAX_SHIFT + 1) if col + s < cols]
        free = [spot for spot in own if spot not in taken]
        if free:  # its own cell, or the first free one right of it
            assert cell == free[0]
        taken.add(cell)


def test_a_token_starts_in_the_cell_of_its_left_edge():
    assert placed([(0, 0), (35, 25), (39.6, 50)], (4, 8)) == [(0, 0), (1, 3), (2, 4)]


def test_a_token_moves_right_then_to_the_nearest():
    assert placed([(20, 30)] * 3, (3, 8)) == [(1, 2), (1, 3), (1, 4)]
    cells = placed([(20, 30)] * 9, (3, 8))
    assert len(set(cells)) == 9
    # the next ones stay near: a row is twice as high as a cell is wide
    assert all(2 * abs(row - 1) + abs(col - 2) <= 3 for row, col in cells)


def test_a_full_page_is_filled_to_the_last_cell():
    assert sorted(placed([(0, 0)] * 12, (3, 4))) == [(r, c) for r in range(3) for c in range(4)]


def test_more_tokens_than_cells_are_refused():
    with pytest.raises(DataError, match="holds 7 tokens, more than its 6 cells"):
        placed([(0, 0)] * 7, (2, 3))


def test_no_tokens():
    assert placed([], (2, 3)) == []


# --- tiles ---------------------------------------------------------------------------------------

grids = st.builds(Grid, st.integers(1, 4), st.integers(1, 4))


@given(grids, st.integers(1, 3), st.integers(1, 3))
def test_a_page_is_joined_as_it_was_cut(grid, high, wide):
    page = np.arange(3 * grid.rows * high * grid.cols * wide)
    page = page.reshape(3, grid.rows * high, grid.cols * wide)
    tiles = torch.from_numpy(cut(page, grid, wide, high))
    assert torch.equal(join_tiles(tiles, *grid), torch.from_numpy(page))


@given(grids, st.integers(1, 3), st.integers(1, 3))
def test_split_and_join_are_inverse(grid, high, wide):
    tiles = torch.randn(grid.tiles, 5, high, wide)
    assert torch.equal(split_tiles(join_tiles(tiles, *grid), *grid), tiles)


def test_a_thumbnail_is_a_page_of_its_own():
    grids = torch.tensor([[2, 3, 1], [1, 1, 0], [4, 1, 1]])
    assert page_grids(grids) == [(2, 3), (1, 1), (1, 1), (4, 1), (1, 1)]
