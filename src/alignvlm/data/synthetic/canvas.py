"""A white page that words are written on, with their places."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...documents.words import X_MIDDLE, Word
from .fonts import drawn_as, load_font


@dataclass(frozen=True)
class Fact:
    """A question and its answer, which is on the page."""

    question: str
    answer: str


@dataclass(frozen=True)
class RenderedPage:
    """An RGB page image, its words in reading order, facts about them, and its layout's name."""

    image: Image.Image
    words: tuple[Word, ...]
    facts: tuple[Fact, ...]
    layout: str


@functools.cache
def bold_of(reference: str) -> str:
    """The bold face beside a regular one, or the font itself if there is none."""
    path = Path(reference)
    stem = path.stem.removesuffix("-Regular")
    beside = (path.with_name(f"{stem}{end}{path.suffix}") for end in ("-Bold", "Bol"))
    return next((str(p) for p in beside if p.suffix and p.is_file()), reference)


@functools.lru_cache(maxsize=65536)
def _offsets(reference: str, px: int, text: str) -> tuple[float, ...]:
    """Edges in px of each character of a word from its left edge: ``len(text) + 1`` numbers."""
    length = load_font(reference, px).getlength
    edges = [length(text[:end]) for end in range(len(text) + 1)]
    return tuple(np.maximum.accumulate(edges).tolist())  # kerning must not step back


class Canvas:
    """A grey page being written on: measures, wraps and draws text, and remembers the words.

    ``left``, ``right``, ``top``, ``bottom`` bound the text and ``pitch`` is the step from line to
    line, all in px; ``rows`` lines fit.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        font: str,
        px: int,
        margin: int,
        line_spacing: float,
        background: int = 255,
        ink: int = 0,
    ) -> None:
        self.font, self.px, self.ink = font, px, ink
        self.image = Image.new("L", (width, height), background)
        self.words: list[Word] = []
        self.line = 0
        self._draw = ImageDraw.Draw(self.image)
        self._bold = bold_of(font)
        faces = [load_font(face, px).getmetrics() for face in (font, self._bold)]
        self._ascent, descent = (max(values) for values in zip(*faces, strict=True))
        self.line_height = self._ascent + descent
        self.pitch = max(self.line_height, round(px * line_spacing))
        self.left, self.right = margin, width - margin
        self.top, self.bottom = margin, height - margin
        self.space = max(1, round(load_font(font, px).getlength(" ")))
        room = self.bottom - self.top - self.line_height
        self.rows = 0 if room < 0 or self.right <= self.left else 1 + room // self.pitch

    def slack(self, lines: int) -> int:
        """Px left below that many lines."""
        used = (lines - 1) * self.pitch + self.line_height
        return max(0, self.bottom - self.top - used)

    def clean(self, text: str) -> str:
        """``text`` as this font can draw it: one space between words, no missing characters."""
        if not (text.isascii() and text.isprintable()):
            chars = unicodedata.normalize("NFC", " ".join(text.split()))
            text = "".join(drawn_as(self.font, char) for char in chars)
        return " ".join(text.split())

    def measure(self, text: str, bold: bool = False) -> int:
        """Width in px of a line of text as :meth:`put` draws it."""
        face, words = self._bold if bold else self.font, text.split()
        widths = (math.ceil(_offsets(face, self.px, word)[-1]) for word in words)
        return sum(widths) + self.space * max(0, len(words) - 1)

    def center(self, text: str, bold: bool = False) -> int:
        """Where a line starts that stands in the middle."""
        return self.left + (self.right - self.left - self.measure(text, bold)) // 2

    def cut(self, text: str, width: int, bold: bool = False) -> str:
        """The longest start of ``text`` that is at most ``width`` px wide."""
        while text and self.measure(text, bold) > width:
            text = text[:-1].rstrip()
        return text

    def wrap(
        self,
        text: str,
        width: int,
        *,
        bold: bool = False,
        split: bool = True,
        limit: int | None = None,
    ) -> list[str]:
        """Break text into lines of at most ``width`` px, ``limit`` lines at most.

        A word wider than that is split between characters, or with ``split=False`` left out.
        """
        lines: list[str] = []
        line, used = "", 0
        queue = text.split()[::-1]
        while queue and (limit is None or len(lines) < limit):
            word = queue.pop()
            size = self.measure(word, bold)
            if size > width:
                start = self.cut(word, width, bold) if split else ""
                if start:
                    queue += [word[len(start) :], start]
                continue
            if line and used + self.space + size > width:
                lines.append(line)
                line, used = word, size
            else:
                used += size + self.space * bool(line)
                line = f"{line} {word}" if line else word
        if line and (limit is None or len(lines) < limit):
            lines.append(line)
        return lines

    def put(self, x: int, y: int, text: str, *, bold: bool = False) -> None:
        """Draw one line of text, its top left corner at ``(x, y)``, and record its words."""
        face = self._bold if bold else self.font
        font = load_font(face, self.px)
        for word in text.split():
            edges = _offsets(face, self.px, word)
            box = (float(x), float(y), x + edges[-1], float(y + self.line_height))
            inside = min(x, y) >= 0 and box[2] <= self.image.width and box[3] <= self.image.height
            assert inside, (word, box, self.image.size)
            self._draw.text((x, y + self._ascent), word, fill=self.ink, font=font, anchor="ls")
            places = tuple(x + edge for edge in edges[:-1])
            middle = y + self._ascent - X_MIDDLE * self.px
            self.words.append(Word(word, box, self.line, places, middle))
            x += math.ceil(edges[-1]) + self.space

    def next_line(self) -> None:
        """Words put from now on belong to the next line (unless nothing was put on this one)."""
        if self.words and self.words[-1].line == self.line:
            self.line += 1

    def rule(self, y: int, x0: int | None = None, x1: int | None = None) -> None:
        """A horizontal line, across the page by default."""
        ends = self.left if x0 is None else x0, self.right - 1 if x1 is None else x1
        self._draw.line((ends[0], y, ends[1], y), fill=self.ink)

    def vertical(self, x: int, y0: int, y1: int) -> None:
        """A vertical line."""
        self._draw.line((x, y0, x, y1), fill=self.ink)

    def page(self, layout: str, facts: Sequence[tuple[str, str]]) -> RenderedPage:
        """The finished page."""
        return RenderedPage(
            self.image.convert("RGB"), tuple(self.words), tuple(Fact(*f) for f in facts), layout
        )
