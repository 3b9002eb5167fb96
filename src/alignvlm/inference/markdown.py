"""Read pages as Markdown: headings, paragraphs, and tables where they are sure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .page_text import PageText, ReadLine, ReadWord, TextLine, paragraphs, usual_height

GAP = 1.2
"""Words that are so many line heights apart stand in two cells."""
LEAST_ROWS = 3
"""Fewer rows of as many cells may be chance."""
_MARKS = re.compile(r"([\\`*_\[\]<>#|~])|^(\s*)([-+]|\d+[.)])(?=\s)")


class Cell(NamedTuple):
    """Words of a table's row that stand together; left and right edge, px."""

    text: str
    left: float
    right: float


Table = list[list[Cell]]
"""Rows of as many cells each."""


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
        parts += _blocks(page.lines, "#" * (level + 1))
    return "\n\n".join(parts) + "\n"


def _blocks(lines: Sequence[TextLine], mark: str) -> Iterator[str]:
    usual = usual_height(lines)
    for found in tables(lines):
        if isinstance(found[0], list):
            yield _table(found)  # type: ignore[arg-type]
            continue
        for part in paragraphs(found, usual):  # type: ignore[arg-type]
            text = "\\\n".join(escaped(line.text) for line in part.lines)
            yield f"{mark} {text}" if part.heading else text


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""

    def escape(found: re.Match[str]) -> str:
        if found[1]:
            return "\\" + found[1]
        return f"{found[2]}{found[3][:-1]}\\{found[3][-1]}"

    return _MARKS.sub(escape, text)


def tables(lines: Sequence[TextLine]) -> list[list[TextLine] | Table]:
    """The lines of a page in pieces: lines of text, and tables.

    A table has at least :data:`LEAST_ROWS` lines of as many cells, whose columns do not overlap.
    Whatever is less sure stays text.
    """
    pieces: list[list[TextLine] | Table] = []
    rows = [_cells(line) for line in lines]
    at = 0
    while at < len(lines):
        end = _table_end(rows, at)
        if end - at >= LEAST_ROWS:
            pieces.append(rows[at:end])
        else:
            end = at + 1
            if not pieces or not isinstance(pieces[-1][0], TextLine):
                pieces.append([])
            pieces[-1].append(lines[at])  # type: ignore[arg-type]
        at = end
    return pieces


def _cells(line: TextLine) -> list[Cell]:
    """A line cut at its wide gaps; a line whose words are not known, or turned, is one cell."""
    if not isinstance(line, ReadLine) or line.turned or not line.words:
        return []
    height = line.box[3] - line.box[1]
    groups: list[list[ReadWord]] = [[line.words[0]]]
    for word in line.words[1:]:
        if word.box[0] - groups[-1][-1].box[2] > GAP * height:
            groups.append([])
        groups[-1].append(word)
    return [Cell(" ".join(w.text for w in g), g[0].box[0], g[-1].box[2]) for g in groups]


def _table_end(rows: list[list[Cell]], start: int) -> int:
    """One past the last row of the table that begins at ``start``; ``start`` where none does."""
    if len(rows[start]) < 2:
        return start
    left, right = [c.left for c in rows[start]], [c.right for c in rows[start]]
    end = start
    while end < len(rows) and len(rows[end]) == len(left):
        left = [min(edge, cell.left) for edge, cell in zip(left, rows[end])]
        right = [max(edge, cell.right) for edge, cell in zip(right, rows[end])]
        if any(a >= b for a, b in zip(right, left[1:])):
            break
        end += 1
    return end


def _table(rows: Table) -> str:
    """Columns of even width. Markdown wants a head: the first row, where it alone has no figures;
    else an empty one."""
    texts = [[escaped(cell.text) for cell in row] for row in rows]
    figures = [any(char.isdigit() for cell in row for char in cell.text) for row in rows]
    if figures[0] or not all(figures[1:]):
        texts.insert(0, [""] * len(texts[0]))
    widths = [max(3, *(len(row[i]) for row in texts)) for i in range(len(texts[0]))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths)) for row in texts]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)
