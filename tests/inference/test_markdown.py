"""Tables of read pages: found where they are sure, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests import drawn

from alignvlm.inference.markdown import as_markdown
from alignvlm.inference.page_reader import PageReader
from alignvlm.inference.page_text import ReadLine, ReadWord, WordPage

PRICES = [
    ("Item", 40, "Amount", 300),
    ("Sea salt", 40, "12", 352),
    ("Flour | rye", 40, "7.45", 330),
    ("Coffee beans", 40, "103.67", 306),
]


def row(top: float, *cells: tuple[str, float], turned: int = 0) -> ReadLine:
    """Words of 10 px a letter, 20 px high, with 8 px between the words of a cell."""
    words = []
    for text, left in cells:
        for word in text.split():
            right = left + 10 * len(word)
            words.append(ReadWord(word, (left, top, right, top + 20), 1.0, []))
            left = right + 8
    text = " ".join(word.text for word in words)
    box = (words[0].box[0], top, words[-1].box[2], top + 20)
    return ReadLine(text, box, turned, words, [])


def shown(lines: Sequence[ReadLine]) -> str:
    return as_markdown([WordPage(1, 500, 400, lines)])


def test_a_drawn_table_comes_out_with_its_columns():
    pieces = [
        drawn.Piece(text, x, 60 + 36 * number)
        for number, (left, a, right, b) in enumerate(PRICES)
        for text, x in ((left, a), (right, b))
    ]
    pieces = [drawn.Piece("Bought on Monday at the market", 40, 10), *pieces]
    page = PageReader.load("reader").read(drawn.page(pieces, (480, 260)))
    assert as_markdown([page]) == (
        "Bought on Monday at the market\n\n"
        "| Item         | Amount |\n"
        "| ------------ | ------ |\n"
        "| Sea salt     | 12     |\n"
        "| Flour \\| rye | 7.45   |\n"
        "| Coffee beans | 103.67 |\n"
    )


def test_a_table_without_names_of_columns_has_an_empty_head():
    rows = [row(30 * i, (f"Item {i}", 10), (f"{i}.50", 300)) for i in range(3)]
    assert shown(rows).splitlines()[:3] == [
        "|        |      |", "| ------ | ---- |", "| Item 0 | 0.50 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, ("Salt", 10), ("1.50", 300)), row(30, ("Tea", 10), ("2.50", 300))],
        # a cell reaches into the other rows' second column
        [
            row(0, ("Salt", 10), ("1.50", 150)),
            row(30, ("Teas", 10), ("2.50", 150)),
            row(60, ("A very long name of it", 10), ("3.50", 300)),
        ],
        # another number of cells
        [
            row(0, ("Salt", 10), ("1.50", 300)),
            row(30, ("and so on", 10)),
            row(60, ("Tea", 10), ("3.50", 300)),
        ],
        [row(30 * i, ("Salt", 10), ("1.50", 300), turned=1) for i in range(4)],
    ],
    ids=["two rows", "overlap", "unlike rows", "turned"],
)
def test_what_is_not_sure_stays_text(rows):
    assert "|" not in shown(rows)
    assert shown(rows).replace("\\\n", "\n").split() == " ".join(r.text for r in rows).split()
