"""The web page in a real browser with the model that ships: what it finds, how soon it stops."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.demo.browsing import CHROMIUM, WAIT, end, start

pytest.importorskip("uvicorn", reason="the web page needs uvicorn")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}"),
]
PAGES = Path(__file__).parents[2] / "examples" / "pages"
RECEIPT, FORM, REPORT = 1, 2, 3
STOPS = 2.0
"""Seconds from Stop until the model is free."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process, url = start("smol")
    yield url
    assert end(process) == 0


def example(visited: Any, number: int) -> None:
    visited.page.click(f"#gallery li:nth-child({number}) button")


def box_of(visited: Any, selector: str) -> list[float]:
    """A drawn box, in px of the page image."""
    names = ("x", "y", "width", "height")
    x, y, wide, high = (float(visited.page.get_attribute(selector, n) or 0) for n in names)
    return [x, y, x + wide, y + high]


@pytest.mark.parametrize("number", [RECEIPT, FORM, REPORT])
def test_the_gallery_answers(visit: Any, number: int) -> None:
    visited = visit()
    told = json.loads((PAGES / "questions.json").read_text("utf-8"))[number - 1]
    example(visited, number)
    assert visited.answered() == told["answers"][0]
    assert visited.page.locator("rect.place").count() >= 1
    visited.page.locator(".chip", has_text=told["questions"][1]).click()
    visited.waits_for("#answer-text", told["answers"][1])
    visited.waits_for("#told", "Marked on the page")
    visited.page.click("#tab-history")
    assert visited.page.locator("#history .said").all_inner_texts() == told["answers"][1::-1]


def test_the_place_is_drawn_on_the_document_and_in_the_text(visit: Any) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(PAGES / "receipt.png"))
    page.fill("#question", "Give the total.")
    page.keyboard.press("Enter")
    assert visited.answered() == "$136.94"
    x0, y0, x1, y1 = box_of(visited, "rect.place")
    assert 310 < x0 < 325 and 420 < x1 < 440 and 335 < y0 < y1 < 375
    assert page.locator("#lines li.here").all_inner_texts() == ["Total $136.94"]
    # the drawing lies where the picture of the page does
    sheet, mark = (page.locator(s).bounding_box() for s in ("#image", "rect.place"))
    scale = sheet["width"] / 440
    assert mark["x"] - sheet["x"] == pytest.approx(x0 * scale, abs=3)
    assert mark["y"] - sheet["y"] == pytest.approx(y0 * scale, abs=3)


def test_an_answer_on_a_phone_leaves_the_document_in_sight(visit: Any) -> None:
    visited = visit(390, 844)
    example(visited, RECEIPT)
    visited.answered()
    visited.page.locator(".chip", has_text="Give the total.").click()
    visited.waits_for("#answer-text", "$136.94")
    visited.waits_for("#told", "Marked on the page")
    assert visited.page.evaluate("window.scrollY") < 200
    for selector in ("rect.place", "#answer"):
        box = visited.page.locator(selector).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844


def test_the_text_can_be_taken_away(visit: Any) -> None:
    context = {"permissions": ["clipboard-read", "clipboard-write"]}
    visited = visit(**context)
    page = visited.page
    page.set_input_files("#file", str(PAGES / "receipt.png"))
    visited.waits_for("#lines", "Total $136.94")
    name, text = visited.saved("#save-txt")
    assert name == "receipt.txt" and text.splitlines()[0] == "Novak Deli"
    name, text = visited.saved("#save-md")
    assert name == "receipt.md" and "12-Feb-2009\\\n" in text
    name, text = visited.saved("#save-json")
    first = json.loads(text)["pages"][0]["lines"][0]
    assert name == "receipt.json" and first["text"] == "Novak Deli"
    assert first["box"] == pytest.approx([150, 14, 290, 37], abs=4)
    page.click("#copy-text")
    visited.waits_for("#copy-text", "Copied")
    assert page.evaluate("navigator.clipboard.readText()").endswith("Total $136.94")


def test_fields_are_a_table_and_a_csv(visit: Any) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(PAGES / "receipt.png"))
    visited.waits_for("#lines", "Total $136.94")
    page.click("#tab-fields")
    page.fill("#fields", "date, total")
    page.click("#find")
    page.wait_for_selector("#table", timeout=WAIT)
    assert page.locator("#table .link").all_inner_texts() == ["2009-02-12", "136.94"]
    page.click("#table tr:nth-child(2) .link")
    assert box_of(visited, "rect.place")[0] == pytest.approx(316, abs=6)
    name, text = visited.saved("#save-csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert name == "receipt.csv"
    assert [(row["field"], row["value"]) for row in rows] == [
        ("date", "2009-02-12"),
        ("total", "136.94"),
    ]
    page.fill("#fields", "total:colour")
    page.click("#find")
    visited.waits_for("#fields-told", "'colour' is none of")


def test_boxes_inside_lie_around_the_text(visit: Any) -> None:
    visited = visit()
    page = visited.page
    example(visited, RECEIPT)
    visited.answered()
    page.click("#tab-inside")
    page.wait_for_selector("rect.cell", timeout=WAIT)
    boxes = page.evaluate(
        "[...document.querySelectorAll('rect.cell')].map(r => [r.getAttribute('aria-label'),"
        " +r.getAttribute('x'), +r.getAttribute('x') + +r.getAttribute('width')])"
    )
    words = {label.split(" ")[0].strip("␣"): (left, right) for label, left, right in boxes}
    left, right = words["Total"]
    assert left == pytest.approx(12, abs=4) and right == pytest.approx(76, abs=6)
    assert page.locator("rect.p4").count() > 70  # nearly all of it is read without doubt
    assert float(page.get_attribute("#sigma", "max") or 0) > 0.01  # steps
    visited.slide("#sigma", 20)
    page.wait_for_selector("rect.changed", timeout=WAIT)
    assert page.inner_text("#sigma-told") == "σ = 0.30"


def time_until_free(page: Any) -> float:
    """Seconds until the model begins with something else."""
    return page.evaluate(
        """async () => {
            const begun = performance.now();
            const opened = await (await fetch('/api/examples/1', { method: 'POST' })).json();
            const ends = new AbortController();
            const told = await fetch('/api/documents/' + opened.key + '/read',
                { method: 'POST', body: '{}', signal: ends.signal });
            const reader = told.body.pipeThrough(new TextDecoderStream()).getReader();
            for (;;) {
                const { value } = await reader.read();
                if (value.includes('"reading"')) break;
            }
            ends.abort();
            return (performance.now() - begun) / 1000;
        }"""
    )


def test_stop_ends_reading(visit: Any) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(PAGES / "report.png"))
    visited.waits_for("#status-text", "Reading page 1: line")
    assert page.locator("#progress").is_visible()
    before = time.monotonic()
    page.click("#stop-reading")
    visited.waits_for("#status-text", "Stopped")
    waited = time_until_free(page)
    assert waited < STOPS and time.monotonic() - before < STOPS + 1
    # and it can be read and asked again
    page.fill("#question", "What is the budget of Contact Center Services?")
    page.keyboard.press("Enter")
    assert visited.answered() == "$8.6M"
    assert page.locator("#lines li.here").all_inner_texts() == ["Contact Center Services $8.6M"]


def test_stop_ends_an_answer(visit: Any) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(PAGES / "report.png"))
    visited.waits_for("#status-text", "Page read")
    page.fill("#question", "Write down all that stands on this page, word for word.")
    page.click("#ask")
    visited.waits_for("#told", "Answering")
    assert page.inner_text("#told").endswith(" s")
    page.keyboard.press("Escape")
    visited.waits_for("#told", "Stopped")
    assert page.locator("#ask").is_visible() and not page.locator("#stop").is_visible()
    assert time_until_free(page) < STOPS


def test_who_waits_is_told_how_many_are_before_them(visit: Any) -> None:
    first, second = visit(), visit()
    first.page.set_input_files("#file", str(PAGES / "report.png"))
    first.waits_for("#status-text", "Looking for lines")
    second.page.set_input_files("#file", str(PAGES / "form.png"))
    second.waits_for("#status-text", "Waiting: 1 job before yours")
    assert second.page.locator("#image").is_visible()
    first.page.close()  # who leaves makes room
    second.waits_for("#lines", "Company: Carter Ltd")
