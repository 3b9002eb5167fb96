"""Takes the pictures of the web page that docs/web-page.md shows, in a real browser with ``smol``.

python -m tests.demo.screenshots         # docs/images/web-page.png, web-page-inside.png and -phone
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from tests.demo.browsing import CHROMIUM, FLAGS, WAIT, Visit, end, start

IMAGES = Path(__file__).parents[2] / "docs" / "images"
NOISE = 8
"""Steps of the slider: enough that some places say something else, the page can still be read."""


def opened(browser: Any, address: str, **options: Any) -> Visit:
    """The receipt with an answer that stands on it."""
    visited = Visit(browser.new_context(**options), address)
    visited.page.click("#gallery li:nth-child(1) button")
    visited.answered()
    visited.page.locator(".chip", has_text="Give the total.").click()
    visited.waits_for("#told", "Marked on the page")
    visited.page.mouse.move(5, 5)
    return visited


def save(visited: Visit, path: Path, colours: int = 0) -> None:
    """A picture; with fewer colours it is half as large, where none of them has a meaning."""
    visited.page.screenshot(path=path)
    with Image.open(path) as made:
        drawn = made.convert("RGB")
    if colours:
        drawn = drawn.quantize(colours, dither=Image.Dither.NONE)
    drawn.save(path, optimize=True)


def take(browser: Any, address: str, out: Path) -> None:
    """All three pictures."""
    visited = opened(browser, address, viewport={"width": 1280, "height": 800})
    save(visited, out / "web-page.png", 256)
    visited.page.click("#tab-inside")
    visited.page.wait_for_selector("#facts li", timeout=WAIT)
    visited.slide("#sigma", NOISE)
    visited.page.wait_for_selector("rect.changed", timeout=WAIT)
    visited.page.locator("rect.p2").last.hover()  # in doubt
    save(visited, out / "web-page-inside.png")
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    save(opened(browser, address, **phone), out / "web-page-phone.png", 256)


if __name__ == "__main__":
    process, url = start("smol")
    try:
        with sync_playwright() as play:
            chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
            take(chromium, url, Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
    finally:
        end(process)
