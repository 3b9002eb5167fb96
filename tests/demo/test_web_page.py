"""The web page in a real browser, with a tiny model: files, pages, keyboard, phone, refusals."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.demo.browsing import CHROMIUM, COMMAND, WAIT, end, start
from tests.demo.looks import small_targets

pytest.importorskip("uvicorn", reason="the web page needs uvicorn")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}"),
]
FOCUSED = "document.activeElement.id || document.activeElement.getAttribute('data-i')"


@pytest.fixture(scope="module")
def address(tiny_model_dir: Path) -> Iterator[str]:
    process, url = start(tiny_model_dir, "--max-pages", "3", "--no-open")
    yield url
    assert end(process) == 0


@pytest.fixture
def pdf(tmp_path: Path, make_image: Any) -> Path:
    path = tmp_path / "four <b>pages.pdf"
    first, *rest = (make_image(60, 30, seed) for seed in range(4))
    first.save(path, save_all=True, append_images=rest, resolution=72)
    return path


@pytest.fixture
def picture(tmp_path: Path, make_image: Any) -> Path:
    path = tmp_path / "one.png"
    make_image(60, 30, 7).save(path)
    return path


def is_read(visited: Any, text: str = "Page read") -> None:
    visited.waits_for("#status-text", text)


def test_one_screen_without_scrolling(visit: Any, pdf: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(pdf))
    is_read(visited)
    for side in ("Width", "Height"):
        assert page.evaluate(f"document.documentElement.scroll{side}") <= 1280 - 480 * (
            side == "Height"
        )
    document, side = page.locator("#document"), page.locator("#side")
    left, right = document.bounding_box(), side.bounding_box()
    assert left["x"] + left["width"] < right["x"] and left["width"] > right["width"]
    for selector in ("#image", "#question", "#answer", "#lines", "#views"):
        assert page.locator(selector).is_visible()


def test_paging_through_a_pdf(visit: Any, pdf: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(pdf))
    is_read(visited)
    told = page.inner_text("#status-text")
    assert told == f"Page read · {pdf.name}: 3 pages; 1 more page left out"
    assert page.evaluate("document.getElementById('image').naturalWidth") == 120
    assert page.inner_text("#name") == pdf.name and page.locator("#name b").count() == 0
    assert page.inner_text("#page-of") == "Page 1 of 3"
    assert page.locator("#thumbnails button").count() == 3
    assert page.locator("#previous").is_disabled()

    page.fill("#question", "What is the total?")
    page.keyboard.press("Enter")
    visited.answered()
    page.click("#next")
    assert page.inner_text("#page-of") == "Page 2 of 3"
    assert not page.locator("#copy-answer").is_visible()  # it was about another page
    assert page.locator("#sheet rect").count() == 0
    page.click("#thumbnails button:nth-child(3)")
    assert page.inner_text("#page-of") == "Page 3 of 3"
    assert page.locator("#next").is_disabled()
    assert page.get_attribute("#thumbnails button:nth-child(3)", "aria-current") == "page"
    is_read(visited)
    page.click("#tab-history")
    page.click("#history button")
    assert page.inner_text("#page-of") == "Page 1 of 3"
    assert page.locator("#copy-answer").is_visible()


def test_all_pages_are_asked_and_read(visit: Any, pdf: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(pdf))
    is_read(visited)
    page.check("[name=scope][value=all]")
    page.fill("#question", "What is it?")
    page.click("#ask")
    visited.answered()
    page.click("#read-all")
    is_read(visited, "All 3 pages read")
    name, text = visited.saved("#save-md")
    assert name.endswith(".md") and "# Page 3" in text


def test_zoom(visit: Any, picture: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(picture))
    is_read(visited)
    assert page.inner_text("#status-text") == "Page read · one.png: 1 page"
    assert not page.locator("#paging").is_visible() and not page.locator("#thumbnails").is_visible()

    def width() -> float:
        return page.locator("#image").bounding_box()["width"]

    fitted = width()
    page.click("#larger")
    assert width() > fitted
    page.focus("#scroller")
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert width() < fitted
    page.click("#fit")
    assert width() == pytest.approx(fitted, abs=1)


def test_a_dropped_file_is_opened(visit: Any, picture: Path) -> None:
    visited = visit()
    dropped = visited.page.evaluate_handle(
        "bytes => { const given = new DataTransfer(); given.items.add("
        "new File([new Uint8Array(bytes)], 'dropped.png')); return given; }",
        list(picture.read_bytes()),
    )
    visited.page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    is_read(visited, "dropped.png: 1 page")


def test_the_keyboard_reaches_everything(visit: Any, pdf: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(pdf))
    is_read(visited)
    page.focus("#question")
    seen = []
    for _ in range(12):
        seen.append(page.evaluate(FOCUSED))
        page.keyboard.press("Tab")
    wanted = ["question", "ask", "tab-text", "copy-text", "save-txt", "save-json", "lines"]
    assert [one for one in seen if one in wanted] == wanted

    page.focus("#scroller")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#page-of") == "Page 2 of 3"
    page.keyboard.press("PageUp")
    assert page.inner_text("#page-of") == "Page 1 of 3"
    is_read(visited)

    page.focus("#tab-ask")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUSED) == "tab-inside"
    page.wait_for_selector("rect.cell", timeout=WAIT)
    # one stop of the tab order for all boxes; arrows go on from there
    assert page.locator("rect.cell[tabindex='0']").count() == 1
    page.focus("rect.cell[tabindex='0']")
    first = page.inner_text("#cell")
    assert "%" in first and page.locator("#cell .token").count() == 5
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUSED) == "1"
    page.keyboard.press("ArrowDown")
    assert int(page.evaluate(FOCUSED)) > 1
    assert "%" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_noise_and_fewer_tokens_are_compared(visit: Any, picture: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file", str(picture))
    is_read(visited)
    page.fill("#question", "What is it?")
    page.click("#tab-inside")
    page.wait_for_selector("#facts li", timeout=WAIT)
    assert not page.locator("#sides").is_visible()
    visited.slide("#sigma", 20)
    page.wait_for_selector("rect.changed", timeout=WAIT)
    assert page.inner_text("#sigma-told").startswith("σ = ")
    assert page.locator("#readings pre").count() == 2
    page.click("#side-before")
    assert page.locator("rect.changed").count() == 0
    visited.slide("#sigma", 0)
    visited.slide("#halved", 2)
    visited.waits_for("#facts", "say something else")
    assert page.inner_text("#halved-told").startswith("100,")
    page.click("#ask-inside")
    visited.waits_for("#inside-answer", "With these settings:")
    page.click("#tab-ask")
    assert page.locator("rect.cell").count() == 0


def test_touch_targets_are_large_enough(visit: Any, pdf: Path) -> None:
    for width in (1280, 390):
        visited = visit(width, 844)
        page = visited.page
        page.set_input_files("#file", str(pdf))
        is_read(visited)
        for tab in ("#tab-fields", "#tab-history", "#tab-text", "#tab-inside", "#tab-ask"):
            if not page.locator(tab).is_visible():
                continue
            page.click(tab)
            assert small_targets(page) == []


def test_phone_is_document_then_answer_then_the_rest(visit: Any, pdf: Path) -> None:
    visited = visit(390, 844)
    page = visited.page
    page.set_input_files("#file", str(pdf))
    is_read(visited)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    order = ["#image", "#question", "#answer", "#views", "#lines"]
    tops = [page.locator(selector).bounding_box()["y"] for selector in order]
    assert tops == sorted(tops) and len(set(tops)) == len(tops)
    page.click("#tab-inside")
    page.wait_for_selector("#facts li", timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_cannot_be_used_is_one_line(visit: Any, tmp_path: Path, picture: Path) -> None:
    visited = visit()
    page = visited.page
    assert page.locator("#ask").is_disabled()
    damaged = tmp_path / "damaged.pdf"
    damaged.write_bytes(b"%PDF-1.4 nothing")
    page.set_input_files("#file", str(damaged))
    visited.waits_for("#status.error", "damaged.pdf: not a PDF, or damaged")
    assert "/" not in page.inner_text("#status-text")
    # the browser itself notes that a request was refused
    assert len(visited.complaints) == 1 and "400" in visited.complaints.pop()
    page.set_input_files("#file", str(picture))
    is_read(visited)
    page.fill("#question", " ")
    page.click("#ask")
    visited.waits_for("#told", "Write a question first")


def test_what_a_document_is_called_stays_text(visit: Any, tmp_path: Path, picture: Path) -> None:
    odd = tmp_path / "<img src=x onerror=alert(1)>.png"
    odd.write_bytes(picture.read_bytes())
    visited = visit()
    visited.page.set_input_files("#file", str(odd))
    is_read(visited)
    assert visited.page.inner_text("#name") == odd.name


def test_a_taken_port_is_one_line(tiny_model_dir: Path, address: str) -> None:
    port = address.rstrip("/").rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tiny_model_dir), "--port", port],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert re.search(f"cannot listen on 127.0.0.1, port {port}", done.stderr)


def test_told_to_end_it_ends(tiny_model_dir: Path) -> None:
    process, _ = start(tiny_model_dir)
    assert end(process, signal.SIGTERM) == 0
