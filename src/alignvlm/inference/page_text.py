"""What was read on pages, as lines with their places, and as files to take away."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ..reader.page import Box

if TYPE_CHECKING:
    from .inspect import CellReading, PageReading

HEADING, APART = 1.35, 0.9
"""Lines so much higher than the page's usual ones are headings; a gap of so many line heights parts
paragraphs."""
_MARKS = re.compile(r"([\\`*_\[\]<>#|~])|^(\s*)([-+]|\d+[.)])(?=\s)")


@dataclass(frozen=True)
class TextLine:
    """A line of a page.

    Attributes:
        text: as it was read.
        box: x0, y0, x1, y1, px of the page image.
    """

    text: str
    box: Box


@dataclass(frozen=True)
class PageText:
    """The lines of a page, in reading order; the first page is 1."""

    page: int
    width: int
    height: int
    lines: Sequence[TextLine]

    @property
    def text(self) -> str:
        """A line a row."""
        return "\n".join(line.text for line in self.lines)


def page_text(reading: PageReading, page: int, size: tuple[int, int], tokenizer: Any) -> PageText:
    """The lines of a reading; what is too faint to say anything is left out."""
    lines = []
    for cells in reading.lines():
        text = tokenizer.decode([cell.tokens[0][1] for cell in cells]).strip()
        if text:
            lines.append(TextLine(text, around(cells, size)))
    return PageText(page, *size, lines)


def around(cells: Sequence[CellReading], size: tuple[int, int]) -> Box:
    """The box around some cells, within the page."""
    boxes = [cell.box for cell in cells]
    return (
        max(min(b[0] for b in boxes), 0.0),
        max(min(b[1] for b in boxes), 0.0),
        min(max(b[2] for b in boxes), float(size[0])),
        min(max(b[3] for b in boxes), float(size[1])),
    )


def as_text(pages: Sequence[PageText]) -> str:
    """Pages one after another, a form feed between them."""
    return "\n\f\n".join(page.text for page in pages) + "\n"


def as_markdown(pages: Sequence[PageText], above: int = 0) -> str:
    """Paragraphs and headings, as lines' gaps and heights tell them; several pages have titles.

    Args:
        above: levels of headings that stand above the pages.
    """
    parts = []
    level = above + (len(pages) > 1)
    for page in pages:
        if len(pages) > 1:
            parts.append(f"{'#' * level} Page {page.page}")
        for part in paragraphs(page.lines):
            text = "\\\n".join(escaped(line.text) for line in part.lines)
            parts.append(f"{'#' * (level + 1)} {text}" if part.heading else text)
    return "\n\n".join(parts) + "\n"


class Paragraph(NamedTuple):
    """Lines that belong together; a heading has one line, higher than the page's usual ones."""

    heading: bool
    lines: list[TextLine]


def paragraphs(lines: Sequence[TextLine]) -> list[Paragraph]:
    """The lines of a page by the gaps between them; lists that are not empty."""
    if not lines:
        return []
    usual = median(line.box[3] - line.box[1] for line in lines)
    found: list[Paragraph] = []
    for line in lines:
        heading = line.box[3] - line.box[1] > HEADING * usual
        last = found[-1] if found else None
        gap = line.box[1] - last.lines[-1].box[3] if last else 0.0
        if last is None or heading or last.heading or gap > APART * usual or gap < -usual:
            found.append(Paragraph(heading, []))
        found[-1].lines.append(line)
    return found


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""

    def escape(found: re.Match[str]) -> str:
        if found[1]:
            return "\\" + found[1]
        return f"{found[2]}{found[3][:-1]}\\{found[3][-1]}"

    return _MARKS.sub(escape, text)


def as_data(name: str, pages: Sequence[PageText]) -> dict[str, Any]:
    """A document's pages as plain data: every line with its box, and all else that is known."""
    return {"file": name, "pages": [asdict(page) for page in pages]}


def as_json(name: str, pages: Sequence[PageText]) -> str:
    """The same as JSON, a value a row."""
    return json.dumps(as_data(name, pages), ensure_ascii=False, indent=1) + "\n"
