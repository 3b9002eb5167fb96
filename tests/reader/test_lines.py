"""Read lines put together: rows, characters' places, pages that were turned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reader.test_boxes import boxes

from alignvlm.reader.boxes import Boxes
from alignvlm.reader.decode import Decoded
from alignvlm.reader.lines import INNER_HEIGHT, assemble, character_boxes
from alignvlm.reader.recognise import Line

ALPHABET = "".join(map(chr, range(33, 127))) + " "


def line(text: str, box: Boxes, sure: float = 0.9, pitch: int = 8) -> Line:
    """A line whose characters stand ``pitch`` px of its cut-out apart."""
    count = len(text)
    left = np.arange(count, dtype=np.float32) * pitch
    kind = np.array([ALPHABET.index(char) + 1 for char in text], np.int64)
    read = Decoded(
        kind,
        np.tile(np.array([3, 7], np.int64), (count, 1)),
        torch.full((count, 2), -2.0),
        np.full(count, sure, np.float32),
        left,
        left + pitch - 2,
    )
    return Line(box, max(count, 1) * pitch, read)


def at(text: str, x: float, y: float, degrees: float = 0, sure: float = 0.9) -> Line:
    """A line from its left end's middle, 8 px a character."""
    length = 8 * len(text)
    angle = np.deg2rad(degrees)
    centre = x + length / 2 * np.cos(angle), y + length / 2 * np.sin(angle)
    return line(text, boxes((*centre, length, 16, degrees)), sure)


def test_pieces_of_a_row_have_a_sure_space_between():
    (row,) = assemble([at("12", 200, 50), at("Total", 20, 50)], ALPHABET)
    assert row.text == "Total 12"
    assert row.turned == 0
    assert len(row.characters.options) == len(row.boxes) == len(row.probability) == 8
    assert row.characters.options[5] == ""
    assert (row.characters.log_ratio[5] == -torch.inf).all()
    assert row.probability[5] == 1
    assert row.characters.options[0] == ALPHABET[2] + ALPHABET[6]
    # the space fills the gap
    assert row.boxes[5, 0] == row.boxes[4, 2]
    assert row.boxes[5, 2] == row.boxes[6, 0]
    np.testing.assert_allclose(row.box, (20, 44, 214, 56), atol=1e-3)


def test_rows_are_read_from_the_top():
    rows = assemble([at("c", 20, 90), at("a", 20, 30), at("b", 20, 60)], ALPHABET)
    assert [row.text for row in rows] == ["a", "b", "c"]


def test_unsure_lines_are_no_text():
    rows = assemble([at("abc", 20, 30, sure=0.4), at("def", 20, 60, sure=0.6)], ALPHABET)
    assert [row.text for row in rows] == ["def"]
    assert assemble([at("abc", 20, 30, sure=0.4)], ALPHABET) == []
    assert assemble([at("", 20, 30)], ALPHABET) == []
    assert assemble([], ALPHABET) == []


def test_added_spaces_have_no_options():
    one = at("a b", 20, 30)
    ratio = one.read.log_ratio.clone()
    ratio[1] = -torch.inf
    ratio[2, 1] = -torch.inf
    (row,) = assemble([Line(one.box, one.width, one.read._replace(log_ratio=ratio))], ALPHABET)
    assert row.characters.options == (ALPHABET[2] + ALPHABET[6], "", ALPHABET[2])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_characters_stand_where_they_are(degrees):
    """Along the line, and a little less high than it."""
    own = character_boxes(at("abcd", 100, 100, degrees))
    half = INNER_HEIGHT * 16 / 2
    along = np.array([(8 * i, 8 * i + 6) for i in range(4)], float)
    low, high = {
        0: ((100 + along[:, 0], 100 - half), (100 + along[:, 1], 100 + half)),
        90: ((100 - half, 100 + along[:, 0]), (100 + half, 100 + along[:, 1])),
        180: ((100 - along[:, 1], 100 - half), (100 - along[:, 0], 100 + half)),
        270: ((100 - half, 100 - along[:, 1]), (100 + half, 100 - along[:, 0])),
    }[degrees]
    expected = np.stack(np.broadcast_arrays(*low, *high), 1)
    np.testing.assert_allclose(own, expected, atol=1e-3)


def test_a_slanted_lines_characters_climb():
    own = character_boxes(at("abcd", 100, 100, -10))
    middle = (own[:, 1] + own[:, 3]) / 2
    assert (np.diff(middle) < -1).all()
    assert (np.diff(own[:, 0]) > 7).all()


PAGE = [
    ("Invoice", 150, 30),
    ("Total", 20, 80), ("12.50", 300, 82),
    ("Paid", 20, 120), ("yes", 300, 121),
]  # fmt: skip


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_turned_page_is_read_as_one_holds_it(quarters):
    """A page of 400 x 200 px turned clockwise by quarters."""

    def there(x: float, y: float) -> tuple[float, float]:
        return {0: (x, y), 1: (200 - y, x), 2: (400 - x, 200 - y), 3: (y, 400 - x)}[quarters]

    lines = [at(text, *there(x, y), 90 * quarters) for text, x, y in PAGE]
    rows = assemble(lines[::-1], ALPHABET)
    assert [row.text for row in rows] == ["Invoice", "Total 12.50", "Paid yes"]
    assert [row.turned for row in rows] == [quarters] * 3
    # places are those of the page's own pixels
    (start,) = (row.boxes[0] for row in rows[:1])
    x, y = there(150, 30)
    assert start[0] - 7 <= x <= start[2] + 7
    assert start[1] - 7 <= y <= start[3] + 7


def test_angles_beyond_a_full_turn_are_the_same():
    lines = [at(text, 400 - x, 200 - y, 180 + 360) for text, x, y in PAGE]
    rows = assemble(lines, ALPHABET)
    assert [row.text for row in rows] == ["Invoice", "Total 12.50", "Paid yes"]
    assert [row.turned for row in rows] == [2] * 3


def test_a_stamp_across_the_page_does_not_turn_it():
    lines = [at(text, x, y) for text, x, y in PAGE]
    rows = assemble([*lines, at("PAID", 390, 150, 270)], ALPHABET)
    assert [row.text for row in rows if row.text != "PAID"] == [
        "Invoice", "Total 12.50", "Paid yes",
    ]  # fmt: skip
    assert "PAID" in [row.text for row in rows]
