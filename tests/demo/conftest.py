"""A browser for the tests of the web page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.demo.browsing import CHROMIUM, FLAGS, Visit
from tests.demo.looks import odd_words


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Visit]]:
    """``visit(width, height)`` opens the page; at the end none may have complained, and each speaks
    plainly."""
    contexts, visits = [], []

    def open_page(width: int = 1280, height: int = 800, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        visits.append(Visit(context, address))
        return visits[-1]

    yield open_page
    odd = [word for one in visits if not one.page.is_closed() for word in odd_words(one.page)]
    for context in contexts:
        context.close()
    assert all(one.is_clean() for one in visits)
    assert odd == []
