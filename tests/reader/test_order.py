"""Reading order: rows across, columns of running text down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignvlm.reader.boxes import Boxes
from alignvlm.reader.order import page_slant, reading_order

Piece = tuple[str, float, float, float]
"""Name, left, top, length; 12 px high."""


def laid(pieces: list[Piece], slant: float = 0.0) -> Boxes:
    """Boxes of some pieces, the page slanted by that many degrees clockwise."""
    middles = np.array([(x + length / 2, y + 6) for _, x, y, length in pieces])
    angle = np.deg2rad(slant)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return Boxes(
        (middles @ turn).astype(np.float32),
        np.array([(length, 12) for _, _, _, length in pieces], np.float32),
        np.full(len(pieces), angle, np.float32),
    )


def order(pieces: list[Piece], slant: float = 0.0, seed: int = 0) -> list[str]:
    """Rows as names, whatever order the pieces come in."""
    shuffled = [pieces[i] for i in np.random.default_rng(seed).permutation(len(pieces))]
    rows = reading_order(laid(shuffled, slant))
    assert sorted(i for row in rows for i in row) == list(range(len(pieces)))
    return [" ".join(shuffled[i][0] for i in row) for row in rows]


def column(name: str, left: float, lines: int, top: float = 60, width: float = 240) -> list[Piece]:
    """Running text: full lines, the last of each paragraph shorter."""
    return [
        (f"{name}{i}", left, top + 18 * i, width * (0.4 if i % 5 == 4 else 0.97 - 0.02 * (i % 3)))
        for i in range(lines)
    ]


def named(name: str, lines: int) -> list[str]:
    return [f"{name}{i}" for i in range(lines)]


def grid(rows: int, lefts: list[float], lengths: list[float], top: float = 40) -> list[Piece]:
    return [
        (f"{r}.{c}", left, top + 20 * r, length)
        for r in range(rows)
        for c, (left, length) in enumerate(zip(lefts, lengths, strict=True))
    ]


def across(rows: int, cols: int) -> list[str]:
    return [" ".join(f"{r}.{c}" for c in range(cols)) for r in range(rows)]


slants = pytest.mark.parametrize("slant", [0, -5, 5])


@slants
def test_lines_are_read_down(slant):
    assert order(column("a", 20, 9), slant) == named("a", 9)


@slants
def test_a_form_is_read_across(slant):
    """Labels at the left, values at the right."""
    pieces = grid(10, [20, 180], [70, 90])
    assert order(pieces, slant) == across(10, 2)


@slants
@pytest.mark.parametrize("rows", [3, 8, 20])
def test_a_table_is_read_across(slant, rows):
    pieces = grid(rows, [20, 170, 280, 400], [90, 50, 60, 40])
    assert order(pieces, slant) == across(rows, 4)


def test_cells_of_several_lengths_are_read_across():
    rng = np.random.default_rng(0)
    pieces = [
        (f"{r}.{c}", 20 + 140 * c, 40 + 20 * r, float(rng.integers(20, 100)))
        for r in range(12)
        for c in range(4)
    ]
    assert order(pieces) == across(12, 4)


def test_a_receipt_is_read_across():
    """Goods left, prices at the right edge."""
    pieces = [("shop", 120, 10, 160)]
    for r in range(12):
        pieces += [(f"{r}.0", 20, 60 + 20 * r, 110 + 9 * (r % 4)), (f"{r}.1", 330, 60 + 20 * r, 45)]
    assert order(pieces) == ["shop", *across(12, 2)]


@slants
def test_two_columns_are_read_down(slant):
    pieces = column("a", 20, 12) + column("b", 290, 12)
    assert order(pieces, slant) == named("a", 12) + named("b", 12)


@slants
def test_a_heading_stands_before_and_a_footer_after_the_columns(slant):
    pieces = [
        ("heading", 60, 10, 420), *column("a", 20, 11), *column("b", 290, 12),
        ("footer", 100, 300, 330),
    ]  # fmt: skip
    assert order(pieces, slant) == ["heading", *named("a", 11), *named("b", 12), "footer"]


@slants
def test_three_columns_are_read_down(slant):
    pieces = [p for n, left in zip("abc", (20, 220, 420)) for p in column(n, left, 10, width=180)]
    assert order(pieces, slant) == named("a", 10) + named("b", 10) + named("c", 10)


@pytest.mark.parametrize("widths", [(240, 100, 180), (100, 240, 120), (120, 120, 300)], ids=str)
def test_columns_of_several_widths_are_read_down(widths):
    lefts = np.cumsum([20, *(width + 30 for width in widths)])
    columns = [column(n, x, 8, width=w) for n, x, w in zip("abc", lefts, widths)]
    box = laid([piece for each in columns for piece in each])
    small = Boxes(box.centre, box.size * np.float32((1, 0.5)), box.angle)  # small print
    assert [i for row in reading_order(small) for i in row] == list(range(24))


def order_of_texts(texts: list[str]) -> list[int]:
    """Two columns of six short lines in large print, 5 ems wide."""
    pieces = [p for name, x in zip("ab", (20, 100)) for p in column(name, x, 6, width=62)]
    box = laid([p for p in pieces if p[3] > 30])
    return [i for row in reading_order(box, texts) for i in row]


def test_large_print_that_goes_on_is_read_down():
    """Its lines are as short as a table's cells; what they say tells them apart."""
    going = ["The rain", "it came", "down on", "the town", "and then"]
    going += ["The sun", "shone on", "us and", "so we", "went out"]
    assert order_of_texts(going) == list(range(10))
    cells = ["Rain", "Town", "Sun", "Day", "Hour", "12", "40", "7", "9", "11"]
    assert order_of_texts(cells) == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]


WORDS = "the rain came down on a town that nobody had seen for many years and then it stopped"


def wrapped(words: list[str], width: float, em: float = 12.0) -> list[str]:
    """Lines of words, each as full as it gets; a letter is half an em wide."""
    lines = [words[0]]
    for word in words[1:]:
        if (len(lines[-1]) + 1 + len(word)) * em / 2 <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@slants
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_word_or_two_a_line_are_read_down_if_they_were_wrapped(slant, data):
    """Columns of 5 to 7 ems, whatever the order of the words."""
    width = data.draw(st.sampled_from([60.0, 72.0, 84.0]))
    columns = []
    for name in ("left", "right"):
        words = data.draw(st.permutations(WORDS.split()), label=name)
        columns.append(wrapped(list(words), width))
    assume(np.mean([" " in line for lines in columns for line in lines]) > 0.2)
    pieces = [
        (line, 20 + i * (width + 24), 18.0 * n, len(line) * 6.0)
        for i, lines in enumerate(columns)
        for n, line in enumerate(lines)
    ]
    rows = reading_order(laid(pieces, slant), [piece[0] for piece in pieces])
    assert [i for row in rows for i in row] == list(range(len(pieces)))


@pytest.mark.parametrize(
    "cells",
    [
        ["latin1", "iso8859_1", "ascii", "us_646", "hebrew", "cp424", "utf_8", "u8"] * 2,
        ["yes", "no", "maybe", "never", "often", "seldom", "always", "once"] * 2,
        ["two eggs", "12.00", "milk", "3.40", "rye bread", "7.95", "salt", "1.10"] * 2,
    ],
    ids=["codes", "words", "prices"],
)
def test_cells_in_small_letters_are_read_across(cells):
    """As long as each other, so none would fit behind another."""
    pieces = [
        (cell, 20 + 90 * (n % 2), 18.0 * (n // 2), 6.0 * len(cell)) for n, cell in enumerate(cells)
    ]
    rows = reading_order(laid(pieces), cells)
    assert rows == [[i, i + 1] for i in range(0, len(cells), 2)]


def test_columns_above_and_below_a_heading():
    """Each band of columns by itself."""
    pieces = [
        *column("a", 20, 6), *column("b", 290, 6),
        ("heading", 40, 180, 460),
        *column("c", 20, 6, top=210), *column("d", 290, 6, top=210),
    ]  # fmt: skip
    expected = named("a", 6) + named("b", 6) + ["heading"] + named("c", 6) + named("d", 6)
    assert order(pieces) == expected


def test_columns_whose_lines_do_not_stand_side_by_side():
    pieces = column("a", 20, 12) + column("b", 290, 11, top=69)
    assert order(pieces) == named("a", 12) + named("b", 11)


@pytest.mark.parametrize("width", [200.0, 201.0, 201.9, 202.1, 203.0])
def test_justified_columns(width):
    """All lines end at the same place, wherever it is."""
    pieces = [(f"{n}{i}", x, 20.0 * i, width) for n, x in (("a", 20), ("b", 240)) for i in range(6)]
    assert order(pieces) == named("a", 6) + named("b", 6)


def test_a_table_under_two_columns():
    pieces = [
        *column("a", 20, 8), *column("b", 290, 8),
        ("caption", 20, 220, 510),
        *grid(5, [20, 170, 290, 420], [90, 50, 60, 40], top=250),
    ]  # fmt: skip
    assert order(pieces) == [*named("a", 8), *named("b", 8), "caption", *across(5, 4)]


def test_a_few_lines_side_by_side_are_no_columns():
    """Addresses of sender and receiver: three lines each."""
    pieces = grid(3, [20, 290], [200, 190])
    assert order(pieces) == across(3, 2)


def test_words_of_one_line_that_differ_in_height_stay_together():
    box = Boxes(
        np.array([(50, 50), (150, 47), (250, 52)], np.float32),
        np.array([(80, 14), (60, 30), (90, 12)], np.float32),
        np.zeros(3, np.float32),
    )
    assert reading_order(box) == [[0, 1, 2]]


def test_close_lines_are_not_joined():
    """Boxes have a margin: those of neighbouring lines overlap."""
    pieces = [(str(i), 20.0, 12.0 * i, 200.0) for i in range(8)]
    box = laid(pieces)
    box = Boxes(box.centre, box.size + np.float32(6), box.angle)
    assert reading_order(box) == [[i] for i in range(8)]


def test_an_odd_angle_does_not_disturb_the_others():
    pieces = [*column("a", 20, 9), ("stamp", 300, 100, 40)]
    box = laid(pieces)
    box.angle[-1] = np.pi / 2
    rows = reading_order(box)
    assert [row[0] for row in rows if 9 not in row[:1]] == list(range(9))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 500), st.floats(0, 500), st.floats(4, 300), st.floats(4, 40),
            st.floats(-3, 3),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_every_box_is_in_one_row(rows):
    x, y, length, height, angle = np.array(rows, np.float32).reshape(-1, 5).T
    box = Boxes(np.stack([x, y], 1), np.stack([length, height], 1), angle)
    found = reading_order(box)
    assert sorted(i for row in found for i in row) == list(range(len(rows)))
    assert all(row for row in found)


def test_the_pages_slant_is_that_of_its_long_lines():
    box = laid(column("a", 20, 9), 4)
    box.angle[0] = 0.3
    assert np.rad2deg(page_slant(box)) == pytest.approx(4, abs=0.01)
    box.angle[:] = np.pi / 2
    assert page_slant(box) == 0
