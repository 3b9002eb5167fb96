"""The web page in a real browser: upload, ask, answer, drawing; keyboard and phone."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the web page needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
COMMAND = "import typer; from alignvlm.cli.serving import demo; typer.run(demo)"
WAIT = 60_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}"),
]


def start(model: Path, *options: str, seconds: float = 300) -> tuple[subprocess.Popen, str]:
    """The command, and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(model), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(seconds)
    line = process.stdout.readline() if ready else ""
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    if not found:
        process.kill()
        process.wait()
        process.stdout.close()
        pytest.fail(f"no address printed, but {line!r}")
    return process, found[0]


def end(process: subprocess.Popen) -> int:
    """Ctrl-C."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def address(tiny_model_dir: Path) -> Iterator[str]:
    process, url = start(tiny_model_dir, "--max-pages", "2", "--no-open")
    yield url
    assert end(process) in (0, -signal.SIGINT, 130)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """``visit(width)``: the page, and what it complained of and whom it called."""
    contexts = []

    def open_page(width: int = 1280) -> SimpleNamespace:
        context = browser.new_context(viewport={"width": width, "height": 850})
        contexts.append(context)
        page = context.new_page()
        complaints: list[str] = []
        calls: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: calls.append(request.url))
        page.goto(address)
        page.wait_for_selector("#example", timeout=WAIT)
        return SimpleNamespace(page=page, complaints=complaints, calls=calls)

    yield open_page
    for context in contexts:
        context.close()


def assert_clean(visited: Any, address: str) -> None:
    assert visited.complaints == []
    outside = [u for u in visited.calls if not u.startswith((address, "data:", "blob:"))]
    assert outside == []


def wait_for_text(page: Any, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).wait_for(timeout=WAIT)


def set_number(page: Any, selector: str, value: str) -> None:
    box = page.locator(f"{selector} input[type=number]")
    box.fill(value)
    box.press("Tab")


@pytest.fixture
def pdf(tmp_path: Path, make_image: Any) -> Path:
    path = tmp_path / "three <b>pages.pdf"
    first, *rest = (make_image(60, 30, seed) for seed in range(3))
    first.save(path, save_all=True, append_images=rest, resolution=72)
    return path


def test_upload_ask_and_compare(visit: Any, address: str, pdf: Path) -> None:
    visited = visit()
    page = visited.page
    page.set_input_files("#file input[type=file]", str(pdf))
    wait_for_text(page, "#notice", "these are the first 2")
    assert "three" in page.inner_text("#notice") and page.locator("#notice b").count() == 0
    page.wait_for_selector("#drawing figure rect", timeout=WAIT)
    assert page.locator("#drawing figure").count() == 1
    assert page.locator("#drawing image").get_attribute("href").startswith("data:image/jpeg")

    page.fill("#question textarea, #question input", "What is the total?")
    page.locator("#question textarea, #question input").press("Enter")
    wait_for_text(page, "#told", "tokens in")
    assert page.locator("#answer textarea").input_value().strip()

    set_number(page, "#sigma", "3")
    page.wait_for_selector("#drawing figure:nth-child(2) rect.changed", timeout=WAIT)
    facts = page.inner_text("#drawing .facts")
    assert "cosine distance" in facts and "changed by noise" in facts
    page.click("#ask")
    page.wait_for_function(
        "document.querySelector('#noisy-answer textarea').value.trim() !== ''", timeout=WAIT
    )

    set_number(page, "#halved", "2")
    wait_for_text(page, "#drawing .facts", "100 of 400")

    before = page.locator("#drawing image").first.get_attribute("href")
    set_number(page, "#page", "2")
    page.wait_for_function(
        "old => document.querySelector('#drawing image')?.getAttribute('href') !== old",
        arg=before,
        timeout=WAIT,
    )
    assert_clean(visited, address)


def test_cells_tell_their_tokens_to_pointer_and_keyboard(visit: Any, address: str) -> None:
    visited = visit()
    page = visited.page
    page.focus("#example")
    page.keyboard.press("Enter")
    page.wait_for_selector("#drawing rect", timeout=WAIT)
    assert page.input_value("#question textarea, #question input").strip()

    cells = page.locator("#drawing rect")
    tip = page.locator("#drawing .tip")
    assert not tip.is_visible()
    cells.nth(1).hover()
    assert tip.is_visible() and "%" in tip.inner_text()
    assert tip.locator(".tip-row").count() == 5
    page.mouse.move(0, 0)
    assert not tip.is_visible()

    # one stop of the tab order for all cells; arrows go on from there
    assert page.locator("#drawing rect[tabindex='0']").count() == 1
    cells.first.focus()
    assert tip.is_visible()
    page.keyboard.press("ArrowRight")
    focused = "document.activeElement.getAttribute('data-i')"
    assert page.evaluate(focused) == "1"
    assert "Row 1, column 2" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowDown")
    assert "Row 2, column 2" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "PRE"
    assert_clean(visited, address)


def test_tab_order_runs_from_the_question_to_the_sliders(visit: Any) -> None:
    page = visit().page
    page.focus("#question textarea, #question input")
    seen = []
    for _ in range(12):
        inside = page.evaluate(
            "['question','ask','sigma','halved'].find("
            "id => document.getElementById(id).contains(document.activeElement))"
        )
        if inside and inside not in seen:
            seen.append(inside)
        page.keyboard.press("Tab")
    assert seen == ["question", "ask", "sigma", "halved"]


def test_phone_width_is_one_column(visit: Any, address: str) -> None:
    visited = visit(390)
    page = visited.page
    page.click("#example")
    page.wait_for_selector("#drawing rect", timeout=WAIT)
    set_number(page, "#sigma", "3")
    page.wait_for_selector("#drawing figure:nth-child(2) rect", timeout=WAIT)
    page.locator("#drawing rect").last.hover()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    left = {round(box["x"]) for f in page.locator("figure").all() if (box := f.bounding_box())}
    assert len(left) == 1
    ask, file = page.locator("#ask").bounding_box(), page.locator("#file").bounding_box()
    assert ask["y"] > file["y"] + file["height"]
    assert_clean(visited, address)


def test_what_cannot_be_used_is_one_line(visit: Any, tmp_path: Path) -> None:
    visited = visit()
    page = visited.page
    page.fill("#question textarea, #question input", "What is it?")
    page.click("#ask")
    wait_for_text(page, "#told [role=alert]", "Drop a page first")
    damaged = tmp_path / "damaged.pdf"
    damaged.write_bytes(b"%PDF-1.4 nothing")
    page.set_input_files("#file input[type=file]", str(damaged))
    wait_for_text(page, "#notice [role=alert]", "damaged.pdf: not a PDF, or damaged")
    assert "/" not in page.inner_text("#notice")
    page.fill("#question textarea, #question input", " ")
    page.click("#example")
    page.wait_for_selector("#drawing rect", timeout=WAIT)
    page.fill("#question textarea, #question input", " ")
    page.click("#ask")
    wait_for_text(page, "#told [role=alert]", "Write a question first")


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
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
