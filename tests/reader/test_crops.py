"""Lines cut out of a page, against textures whose value is known everywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reader.test_boxes import boxes
from torch import Tensor

from alignvlm.reader.boxes import Boxes
from alignvlm.reader.crops import BATCH_COLUMNS, HALVE, HEIGHT, STEP, Page, batches, widths

Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]


def page_of(texture: Texture, high: int = 200, wide: int = 300) -> Tensor:
    """Three channels: the texture, its negative, and nothing; a pixel's middle lies at .5."""
    y, x = np.mgrid[:high, :wide] + 0.5
    value = torch.from_numpy(texture(x, y))
    return torch.stack([value, -value, 0 * value])


def expected(texture: Texture, box: Boxes, width: int) -> np.ndarray:
    """The texture where each pixel of the cut-out lies, by the corners of the box."""
    top_left, top_right, _, bottom_left = box.corners()[0].astype(np.float64)
    u = ((np.arange(width) + 0.5) / width)[None, :, None]
    v = ((np.arange(HEIGHT) + 0.5) / HEIGHT)[:, None, None]
    place = top_left + u * (top_right - top_left) + v * (bottom_left - top_left)
    return texture(place[..., 0], place[..., 1])


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear: interpolation is exact."""
    return 0.003 * x - 0.004 * y + 0.1


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x / 9) * np.cos(y / 13)


@pytest.mark.parametrize("degrees", [0, 5, -30, 90, 135, 180, 270])
@pytest.mark.parametrize(
    ("texture", "error"), [(slope, 1e-4), (waves, 4e-3)], ids=["slope", "waves"]
)
@pytest.mark.parametrize("size", [(90, 30), (100, 48), (60, 70)], ids=str)
def test_a_cut_out_is_what_lies_under_the_box(size, texture, error, degrees):
    box = boxes((151.3, 98.6, *size, degrees))
    (cut,) = Page(page_of(texture)).cut(box)
    width = int(widths(box)[0])
    assert cut.shape == (3, HEIGHT, width)
    wanted = expected(texture, box, width)
    np.testing.assert_allclose(cut[0], wanted, atol=error)
    np.testing.assert_allclose(cut[1], -wanted, atol=error)
    assert cut[2].abs().max() < 1e-6


def test_an_upright_box_of_that_height_is_the_page_itself():
    pixels = torch.rand(3, 100, 200, generator=torch.Generator().manual_seed(0))
    (cut,) = Page(pixels).cut(boxes((100, 50, 80, 48, 0)))
    torch.testing.assert_close(cut, pixels[:, 26:74, 60:140], atol=1e-4, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_box_is_the_upright_one_of_the_turned_page(quarters):
    pixels = torch.rand(3, 120, 200, generator=torch.Generator().manual_seed(0))
    box = boxes((101, 57, 40, 20, 0))
    (upright,) = Page(pixels).cut(box)
    # the page turned clockwise, and where the box then lies
    turned = torch.rot90(pixels, -quarters, (1, 2))
    x, y = box.centre[0]
    places = {1: (120 - y, x), 2: (200 - x, 120 - y), 3: (y, 200 - x)}
    there = boxes((*places[quarters], 40, 20, 90 * quarters))
    (cut,) = Page(turned).cut(there)
    torch.testing.assert_close(cut, upright, atol=1e-3, rtol=0)


def test_a_slanted_box_is_the_upright_one_of_the_slanted_page():
    pixels = page_of(waves)
    angle = np.deg2rad(12)

    def slanted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # the page turned clockwise about (150, 100)
        dx, dy = x - 150, y - 100
        return waves(
            150 + dx * np.cos(angle) + dy * np.sin(angle),
            100 - dx * np.sin(angle) + dy * np.cos(angle),
        )

    (upright,) = Page(pixels).cut(boxes((150, 100, 120, 40, 0)))
    (cut,) = Page(page_of(slanted)).cut(boxes((150, 100, 120, 40, 12)))
    torch.testing.assert_close(cut, upright, atol=6e-3, rtol=0)


def test_what_lies_beside_the_page_repeats_its_edge():
    pixels = torch.rand(3, 60, 100, generator=torch.Generator().manual_seed(0))
    (cut,) = Page(pixels).cut(boxes((0, 30, 80, 48, 0)))
    torch.testing.assert_close(cut[:, :, :39], pixels[:, 6:54, :1].expand(-1, -1, 39))


def test_shorter_lines_are_grey_at_the_right():
    box = boxes((60, 30, 48, 48, 0), (100, 100, 96, 48, 0))
    cut = Page(page_of(slope) + 5).cut(box)
    assert cut.shape[3] == 96
    assert (cut[0, :, :, 48:] == 0).all()
    assert (cut[0, 0, :, :48] > 1).all()
    assert (cut[1, 0] > 1).all()
    (alone,) = Page(page_of(slope) + 5).cut(box.take(np.array([0])))
    torch.testing.assert_close(cut[0, :, :, :48], alone)


# --- large lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "level"), [(80, 0), (92, 1), (170, 1), (178, 2), (350, 3)])
def test_large_lines_are_cut_from_a_smaller_page(height, level):
    assert level == max(0, int(np.floor(np.log2(height / HEIGHT / HALVE))) + 1)
    page = Page(page_of(slope, 401, 603))
    (cut,) = page.cut(box := boxes((300, 200, 380, height, 3)))
    assert len(page.sizes) == level + 1
    # sizes that are no multiples of two do not shift what is cut
    np.testing.assert_allclose(cut[0], expected(slope, box, int(widths(box)[0])), atol=1e-3)


def test_fine_stripes_do_not_alias():
    """Stripes of a pixel each, at half size: their mean, not a moiré."""
    stripes = torch.ones(3, 200, 400)
    stripes[:, :, ::2] = -1
    page = Page(stripes)
    assert page.cut(boxes((200, 100, 300, 100, 0))).abs().max() < 1e-5
    assert page.cut(boxes((200, 100, 300, 48, 0))).abs().max() > 0.9


def test_a_smaller_page_ends_as_the_page_does():
    """No dark rim where an odd number of pixels was halved."""
    page = Page(torch.ones(3, 201, 301))
    cut = page.cut(boxes((290, 190, 60, 150, 0)))
    assert len(page.sizes) == 2
    torch.testing.assert_close(cut, torch.ones_like(cut))


def test_lines_of_several_sizes_keep_their_order():
    box = boxes((150, 100, 100, 150, 0), (150, 100, 100, 30, 0), (150, 100, 100, 100, 0))
    page = Page(page_of(slope))
    together = page.cut(box)
    for index, width in enumerate(widths(box)):
        (alone,) = page.cut(box.take(np.array([index])))
        torch.testing.assert_close(together[index, :, :, :width], alone)


# --- gradients -----------------------------------------------------------------------------------


def test_gradients_reach_the_pixels():
    """Cutting is linear, so the product with the gradient is the value itself."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 150, 200, generator=generator, dtype=torch.float64).requires_grad_()
    box = boxes((90, 70, 60, 20, 7), (100, 80, 90, 120, -3))
    cut = Page(pixels).cut(box)
    weight = torch.randn(cut.shape, generator=generator, dtype=torch.float64)
    value = (weight * cut).sum()
    (gradient,) = torch.autograd.grad(value, pixels)
    torch.testing.assert_close((gradient * pixels).sum(), value)
    assert (gradient[:, 60:80, 70:110] != 0).all()
    assert (gradient[:, :4] == 0).all()
    step = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    moved = (weight * Page(pixels.detach() + step).cut(box)).sum() - value
    torch.testing.assert_close((gradient * step).sum(), moved)


# --- widths and batches --------------------------------------------------------------------------


def test_widths_are_whole_columns_within_bounds():
    box = boxes((0, 0, 100, 24, 0), (0, 0, 1, 24, 0), (0, 0, 9e4, 24, 0), (0, 0, 100, 0, 0))
    assert widths(box).tolist() == [200, 40, 3200, 3200]
    assert widths(boxes((0, 0, 101, 48, 0)))[0] == 104


sizes = st.lists(
    st.tuples(st.floats(1, 3000), st.floats(4, 200)), min_size=0, max_size=60
).map(lambda rows: Boxes(
    np.zeros((len(rows), 2), np.float32),
    np.array(rows, np.float32).reshape(-1, 2),
    np.zeros(len(rows), np.float32),
))  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(sizes)
def test_batches_hold_each_line_once(box):
    width = widths(box)
    chosen = list(batches(box))
    assert sorted(np.concatenate(chosen)) == list(range(len(box))) if chosen else len(box) == 0
    for index in chosen:
        own = width[index]
        assert own.max() // STEP * len(index) <= BATCH_COLUMNS
        assert own.max() <= 1.25 * own.min() + 4 * STEP
    widest = [width[index].max() for index in chosen]
    assert widest == sorted(widest)
