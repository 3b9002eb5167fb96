"""What was read on pages, as lines with their places, and as files to take away."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..inference.extract import FieldValue
from ..inference.inspect import CellReading, PageReading
from ..reader.page import Box

HEADING, APART = 1.35, 0.9
"""Lines so much higher than the page's usual ones are headings; a gap of so many line heights parts
paragraphs."""
COLUMNS = ("field", "value", "text", "page", "boxes", "confidence", "note")
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
    lines: list[TextLine]

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


def as_markdown(pages: Sequence[PageText]) -> str:
    """Paragraphs and headings, as lines' gaps and heights tell them; several pages have titles."""
    parts = []
    for page in pages:
        if len(pages) > 1:
            parts.append(f"# Page {page.page}")
        parts += _blocks(page.lines, "##" if len(pages) > 1 else "#")
    return "\n\n".join(parts) + "\n"


def _blocks(lines: Sequence[TextLine], mark: str) -> list[str]:
    if not lines:
        return []
    usual = median(line.box[3] - line.box[1] for line in lines)
    blocks: list[list[str]] = []
    below: TextLine | None = None
    titled = False
    for line in lines:
        title = line.box[3] - line.box[1] > HEADING * usual
        gap = 0.0 if below is None else line.box[1] - below.box[3]
        if title or titled or not blocks or gap > APART * usual or gap < -usual:
            blocks.append([])
        blocks[-1].append(f"{mark} {_escaped(line.text)}" if title else _escaped(line.text))
        below, titled = line, title
    return ["\\\n".join(block) for block in blocks]


def _escaped(text: str) -> str:
    def escape(found: re.Match[str]) -> str:
        if found[1]:
            return "\\" + found[1]
        return f"{found[2]}{found[3][:-1]}\\{found[3][-1]}"

    return _MARKS.sub(escape, text)


def as_json(name: str, pages: Sequence[PageText]) -> str:
    """Every line with its box."""
    told = {"file": name, "pages": [asdict(page) for page in pages]}
    return json.dumps(told, ensure_ascii=False, indent=1) + "\n"


def as_csv(fields: Mapping[str, FieldValue]) -> str:
    """A row a field; boxes as ``x0 y0 x1 y1`` for each line of the words."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for name, found in fields.items():
        value = "" if found.value is None else str(found.value)
        boxes = "; ".join(" ".join(f"{edge:.1f}" for edge in box) for box in found.boxes)
        page = found.page or ""
        sure = f"{found.confidence:.4f}"
        rows.writerow([name, value, found.text, page, boxes, sure, found.note or ""])
    return out.getvalue()
