"""What was read on pages, as lines with their places, and as files to take away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ..reader.page import Box
from .span import union

if TYPE_CHECKING:
    from .inspect import CellReading, PageReading

HEADING, APART = 1.35, 0.9
"""Lines so much higher than the page's usual ones are headings; a gap of so many line heights parts
paragraphs."""


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


@dataclass(frozen=True)
class Choice:
    """Another spelling of a word, or another token that may start there, and its probability."""

    text: str
    confidence: float


@dataclass(frozen=True)
class ReadWord:
    """A word of a line.

    Attributes:
        text: without white space.
        box: x0, y0, x1, y1, px of the page image.
        confidence: the probability that all of its characters are right, by the recogniser.
        choices: the word with one character replaced, where that is likely too; best first.
    """

    text: str
    box: Box
    confidence: float
    choices: list[Choice]


@dataclass(frozen=True)
class ReadToken:
    """A token of the language model; fields as :class:`ReadWord` has them, and its id."""

    text: str
    id: int
    box: Box
    confidence: float
    choices: list[Choice]


@dataclass(frozen=True)
class ReadLine(TextLine):
    """A line with its words.

    Attributes:
        turned: quarter turns by which it is turned clockwise against the page image.
        words: from left to right.
        tokens: what the language model gets of it; empty unless asked for.
    """

    turned: int
    words: list[ReadWord]
    tokens: list[ReadToken]


@dataclass(frozen=True)
class WordPage(PageText):
    """A page whose lines have words.

    Attributes:
        scale: px of the page image per PDF point (1/72 inch); None for a picture.
    """

    lines: Sequence[ReadLine]
    scale: float | None = None


class Paragraph(NamedTuple):
    """Lines that belong together; a heading has one line, higher than the page's usual ones."""

    heading: bool
    lines: list[TextLine]


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
    x0, y0, x1, y1 = union([cell.box for cell in cells])
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))


def as_text(pages: Sequence[PageText]) -> str:
    """Pages one after another, a form feed between them."""
    return "\n\f\n".join(page.text for page in pages) + "\n"


def usual_height(lines: Sequence[TextLine]) -> float:
    """Of the lines of a page, px; 0 where there are none."""
    return median(line.box[3] - line.box[1] for line in lines) if lines else 0.0


def paragraphs(lines: Sequence[TextLine], usual: float | None = None) -> list[Paragraph]:
    """Lines that follow one another, by the gaps between them.

    Args:
        usual: height of the page's lines; default: that of these.
    """
    usual = usual_height(lines) if usual is None else usual
    found: list[Paragraph] = []
    for line in lines:
        heading = line.box[3] - line.box[1] > HEADING * usual
        last = found[-1] if found else None
        gap = line.box[1] - last.lines[-1].box[3] if last else 0.0
        if last is None or heading or last.heading or gap > APART * usual or gap < -usual:
            found.append(Paragraph(heading, []))
        found[-1].lines.append(line)
    return found


def as_data(name: str, pages: Sequence[PageText]) -> dict[str, Any]:
    """A document's pages as plain data: every line with its box, and all else that is known."""
    return {"file": name, "pages": [asdict(page) for page in pages]}


def as_json(name: str, pages: Sequence[PageText]) -> str:
    """The same as JSON, a value a row."""
    return json.dumps(as_data(name, pages), ensure_ascii=False, indent=1) + "\n"
