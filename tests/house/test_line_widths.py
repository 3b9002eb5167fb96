"""Prose of the documentation is as wide as the code: 100 characters, a little more for a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDEST = 106


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without code, tables and what a script writes."""
    code = written = False
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*```", line):
            code = not code
        if line.startswith("<!--"):
            written = not line.startswith(("<!-- end", "<!-- /", "<!-- not run"))
        elif not (code or written or line.startswith(("|", "    "))):
            yield number, line


def test_lines_of_the_documentation_are_even() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*/README.md")]
    assert len(pages) > 30
    wide = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages
        for number, line in prose(page.read_text("utf-8"))
        if len(line) > WIDEST
    ]
    assert not wide, wide
