"""From a detector's map to rotated rectangles, on maps that are drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvlm.reader.boxes import GROWTH, Boxes, find_boxes, nothing

Rectangle = tuple[tuple[float, float], tuple[float, float], float]


def drawn(*rectangles: Rectangle, probability: float = 0.9, size=(300, 400)) -> np.ndarray:
    """A map with rectangles ``(centre, (length, height), degrees)``."""
    result = np.zeros(size, np.float32)
    for rectangle in rectangles:
        corners = np.round(cv2.boxPoints(rectangle)).astype(np.int32)
        cv2.fillPoly(result, [corners], (probability,))
    return result


def found(*rectangles: Rectangle, scale=(1.0, 1.0), **keys) -> Boxes:
    return find_boxes(drawn(*rectangles, **keys), scale)


def boxes(*rows: tuple[float, float, float, float, float]) -> Boxes:
    x, y, length, height, degrees = np.array(rows, np.float32).T
    return Boxes(np.stack([x, y], 1), np.stack([length, height], 1), np.deg2rad(degrees))


def grown(length: float, height: float) -> tuple[float, float]:
    """The box of a drawn region: pixels at its edge are whole, and joining pieces adds one."""
    length, height = length + 2, height + 2
    growth = GROWTH * length * height / (2 * (length + height))
    return length + 2 * growth, height + 2 * growth


@pytest.mark.parametrize("degrees", [0, 3, -7, 10, -20, 33, 44, -44])
def test_a_line_is_found_with_its_slant(degrees):
    line = found(((200, 150), (160, 20), degrees))
    assert len(line) == 1
    np.testing.assert_allclose(line.centre[0], (200.5, 150.5), atol=1)
    np.testing.assert_allclose(line.size[0], grown(160, 20), rtol=0.02, atol=4)
    assert np.rad2deg(line.angle[0]) == pytest.approx(degrees, abs=0.7)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    x=st.integers(150, 250), y=st.integers(120, 180), length=st.integers(90, 150),
    height=st.integers(8, 24), degrees=st.integers(-42, 42),
)  # fmt: skip
def test_any_line_is_found(x, y, length, height, degrees):
    line = found(((x, y), (length, height), degrees))
    assert len(line) == 1
    np.testing.assert_allclose(line.centre[0], (x + 0.5, y + 0.5), atol=1.5)
    np.testing.assert_allclose(line.size[0], grown(length, height), rtol=0.05, atol=5)
    assert np.rad2deg(line.angle[0]) == pytest.approx(degrees, abs=2)


@pytest.mark.parametrize("degrees", [50, 70, 90, 110, 130])
def test_a_tall_box_is_read_downwards(degrees):
    """A line at more than 45 degrees: along the y axis, whatever its exact slant."""
    line = found(((200, 150), (160, 20), degrees))
    assert len(line) == 1
    assert np.rad2deg(line.angle[0]) == pytest.approx(degrees, abs=0.7)
    np.testing.assert_allclose(line.size[0], grown(160, 20), rtol=0.02, atol=4)


def test_a_box_a_little_higher_than_wide_stays_level():
    line = found(((200, 150), (40, 50), 0))
    assert line.angle[0] == 0
    assert line.size[0, 0] < line.size[0, 1]


def test_what_is_too_small_or_too_faint_is_dropped():
    assert len(found(((200, 150), (1, 1), 0))) == 0
    assert len(found(((200, 150), (100, 1), 0))) == 0
    assert len(found(((200, 150), (5, 5), 0))) == 1
    assert len(found(((200, 150), (160, 20), 0), probability=0.25)) == 0
    assert len(found(((200, 150), (160, 20), 0), probability=0.45)) == 0
    assert len(found(((200, 150), (160, 20), 0), probability=0.55)) == 1
    assert len(find_boxes(np.zeros((64, 64), np.float32), (1.0, 1.0))) == 0


def test_a_region_is_measured_inside_its_own_box():
    """A sure line beside a faint one does not lend it its probability."""
    both = np.maximum(
        drawn(((200, 60), (160, 20), 0)),
        drawn(((200, 100), (160, 20), 0), probability=0.4),
    )
    lines = find_boxes(both, (1.0, 1.0))
    np.testing.assert_allclose(lines.centre, [(200.5, 60.5)], atol=1)


def test_short_boxes_take_the_slant_of_long_ones():
    lines = found(((200, 150), (160, 20), 10), ((60, 60), (24, 20), 35), ((320, 60), (22, 18), -30))
    assert len(lines) == 3
    np.testing.assert_allclose(np.rad2deg(lines.angle), [10] * 3, atol=1)
    # the rectangle stands around the region: at least as large as the region's own
    own = found(((60, 60), (24, 20), 10))
    short = lines.take(np.argsort(lines.centre[:, 0])[:1])
    assert (short.size >= own.size - 1).all()
    np.testing.assert_allclose(short.centre[0], (60.5, 60.5), atol=1.5)
    # without long ones they lie level
    assert found(((60, 60), (24, 20), 35)).angle[0] == 0


def test_long_lines_say_the_slant_by_their_length():
    lines = found(
        ((200, 50), (300, 14), 2), ((100, 200), (60, 14), 40), ((300, 200), (60, 14), 40),
        ((200, 150), (24, 20), 20),
    )  # fmt: skip
    short = lines.take(np.abs(lines.centre - 150.5).argmin(0)[1:])
    assert np.rad2deg(short.angle[0]) == pytest.approx(2, abs=1)


def test_the_map_is_scaled_to_the_page():
    line = found(((200, 150), (160, 20), 0), scale=(2.0, 1.5))
    np.testing.assert_allclose(line.centre[0], (401, 225.75), atol=2)
    np.testing.assert_allclose(line.size[0], np.multiply(grown(160, 20), 1.75), rtol=0.03, atol=6)


rows = st.lists(
    st.tuples(*[st.floats(1, 500, width=32)] * 4, st.floats(-180, 180, width=32)),
    min_size=1,
    max_size=5,
)


@given(rows)
def test_four_quarter_turns_are_none(rows):
    start = boxes(*rows)
    turned = start
    for _ in range(4):
        turned = turned.turned(1)
    np.testing.assert_array_equal(turned.size, start.size)
    np.testing.assert_array_equal(turned.centre, start.centre)
    np.testing.assert_allclose(turned.angle, start.angle + 2 * np.pi, atol=1e-5)
    np.testing.assert_allclose(turned.corners(), start.corners(), atol=5e-3)


@given(rows, st.integers(-4, 7))
def test_a_turned_box_covers_the_same_place(rows, quarters):
    """The same corners, and reading begins at another of them."""
    start = boxes(*rows)
    corners = start.turned(quarters).corners()
    np.testing.assert_allclose(corners, np.roll(start.corners(), -quarters, 1), atol=5e-3)


def test_each_box_can_be_turned_by_itself():
    start = boxes((50, 20, 40, 10, 0), (50, 80, 40, 10, 0))
    turned = start.turned(np.array([0, 1]))
    np.testing.assert_array_equal(turned.size, [[40, 10], [10, 40]])
    np.testing.assert_allclose(turned.angle, [0, np.pi / 2])


def test_corners():
    level = boxes((50, 20, 40, 10, 0)).corners()[0]
    np.testing.assert_allclose(level, [(30, 15), (70, 15), (70, 25), (30, 25)])
    # reading downwards: what is left of a letter lies above it, its top to the right
    down = boxes((50, 20, 40, 10, 90)).corners()[0]
    np.testing.assert_allclose(down, [(55, 0), (55, 40), (45, 40), (45, 0)], atol=1e-4)


def test_some_of_the_boxes():
    start = boxes((1, 1, 4, 4, 0), (2, 2, 4, 4, 0), (3, 3, 4, 4, 0))
    assert start.take(np.array([2, 0])).centre[:, 0].tolist() == [3, 1]
    assert start.take(np.array([False, True, False])).centre[:, 0].tolist() == [2]
    assert len(nothing()) == 0
    assert nothing().corners().shape == (0, 4, 2)
