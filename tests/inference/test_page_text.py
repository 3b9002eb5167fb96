"""What was read, as files to take away."""

from __future__ import annotations

import json

import pytest

from alignvlm.inference.inspect import CellReading, PageReading
from alignvlm.inference.markdown import as_markdown
from alignvlm.inference.page_text import (
    PageText,
    TextLine,
    as_json,
    as_text,
    page_text,
)


def line(text: str, top: float, high: float = 10) -> TextLine:
    return TextLine(text, (5.0, top, 90.0, top + high))


@pytest.fixture
def page() -> PageText:
    lines = [
        line("Novak Deli", 0, 20),
        line("29 Lake St", 25),
        line("+99 683 *1546*", 37),
        line("1. Salt", 70),
        line("- 2 < 3", 82),
        line("Total $3", 94),
    ]
    return PageText(1, 100, 120, lines)


def test_text_is_a_line_a_row(page):
    assert as_text([page]).splitlines()[:2] == ["Novak Deli", "29 Lake St"]
    second = PageText(2, 9, 9, [line("more", 0)])
    assert as_text([page, second]).split("\f")[1].strip() == "more"


def test_markdown_has_headings_and_paragraphs_and_no_markup_of_the_page(page):
    assert as_markdown([page]) == (
        "# Novak Deli\n\n29 Lake St\\\n+99 683 \\*1546\\*\n\n1\\. Salt\\\n\\- 2 \\< 3\\\nTotal $3\n"
    )
    both = as_markdown([page, PageText(2, 9, 9, [])])
    assert both.startswith("# Page 1\n\n## Novak Deli") and both.endswith("# Page 2\n")


def test_json_has_each_line_with_its_box(page):
    told = json.loads(as_json("a.png", [page]))
    assert told["file"] == "a.png"
    assert told["pages"][0]["lines"][0] == {"text": "Novak Deli", "box": [5, 0, 90, 20]}


def test_lines_have_the_boxes_of_their_tokens_within_the_page(tokenizer):
    ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in ("a", "b")]
    cells = [
        CellReading(0, i, (10.0 * i, -2.0, 10.0 * i + 12, 9.0), 0.0, [("x", index, 0.9)])
        for i, index in enumerate([*ids, 0])
    ]
    blank = [CellReading(1, i, (0, 0, 1, 1), 0.0, [(" ", 0, 1.0)]) for i in range(3)]
    reading = PageReading(2, 3, [*cells, *blank], 0, 0.0, 1.0)
    text = page_text(reading, 4, (20, 30), tokenizer)
    assert text.page == 4 and (text.width, text.height) == (20, 30)
    assert [(one.text, one.box) for one in text.lines] == [
        (tokenizer.decode(ids).strip(), (0.0, 0.0, 20.0, 9.0))
    ]
