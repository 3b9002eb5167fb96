"""Draw page images whose every word and character position is known.

:func:`render_page` makes training pages, :func:`render_table` draws a given table.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignvlm.data import layouts
from alignvlm.data.corpus import (
    Table,
    builtin_passages,
    builtin_tables,
    passages_from,
    table_from_csv,
)
from alignvlm.data.degrade import Degrader, degrade
from alignvlm.data.fonts import drawn_as, expand_fonts, load_font, plain_font

from ..errors import ConfigError, DataError

Layout = Literal["text", "form", "receipt", "table"]
Ruling = Literal["none", "header", "rows", "grid"]


X_MIDDLE = 0.26
"""Ems from the baseline up to the middle of small letters, in most fonts."""


@dataclass(frozen=True)
class Word:
    """One word on a page.

    Attributes:
        text: the word, without white space.
        box: ``(x0, y0, x1, y1)`` in px of the page image: x from the font's advance, y from its
            ascent and descent.
        line: index of the text line, in reading order.
        char_x: left edge in px of each character; ``len(char_x) == len(text)``.
        middle: y in px of the middle of the line's small letters, where it is known: 0.26 ems above
            the baseline.
    """

    text: str
    box: tuple[float, float, float, float]
    line: int
    char_x: tuple[float, ...]
    middle: float | None = None


@dataclass(frozen=True)
class Fact:
    """A question and its answer, which is on the page."""

    question: str
    answer: str


@dataclass(frozen=True)
class Page:
    """An RGB page image, its words in reading order, facts about them, and its layout's name."""

    image: Image.Image
    words: tuple[Word, ...]
    facts: tuple[Fact, ...]
    layout: str


class RenderSpec(BaseModel):
    """How pages look; ``(spec, seed)`` fixes a page to the last pixel.

    ``font_px`` is the font size (the em), both ends included; ``background`` and ``ink`` are ranges
    of grey. ``fonts`` are font files, folders of them, names of default fonts (``"DejaVuSans"``),
    ``"pillow:default"``, or ``"system"`` (see ``fonts.system_fonts``); empty is
    ``default_fonts()``. ``random_text`` is the fraction of words replaced by random strings: it
    teaches reading rather than guessing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Layout
    width: int = Field(392, ge=1, le=10_000)
    height: int = Field(196, ge=1, le=10_000)
    font_px: tuple[int, int] = (24, 30)
    fonts: tuple[str, ...] = ()
    margin: int = Field(8, ge=0)
    line_spacing: float = Field(1.25, gt=0, le=10)
    invert_probability: float = Field(0.0, ge=0, le=1)
    background: tuple[int, int] = (235, 255)
    ink: tuple[int, int] = (0, 60)
    degrade: float = Field(0.0, ge=0, le=1)
    degrader: Degrader = "basic"
    text_file: str | None = None
    tables_dir: str | None = None
    table_delimiter: str = Field(",", min_length=1, max_length=1)
    random_text: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ranges(self) -> RenderSpec:
        limits = (("font_px", 4, 500), ("background", 0, 255), ("ink", 0, 255))
        for name, least, most in limits:
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be low, high within {least} to {most}: {low, high}")
        return self


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
            places, middle = (
                tuple(x + edge for edge in edges[:-1]),
                y + self._ascent - X_MIDDLE * self.px,
            )
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

    def page(self, layout: str, facts: layouts.Facts) -> Page:
        """The finished page."""
        return Page(
            self.image.convert("RGB"), tuple(self.words), tuple(Fact(*f) for f in facts), layout
        )


_file_passages = functools.lru_cache(maxsize=8)(passages_from)
_file_table = functools.lru_cache(maxsize=1024)(table_from_csv)


@functools.lru_cache(maxsize=8)
def _csv_files(folder: str) -> tuple[Path, ...]:
    files = tuple(sorted(Path(folder).rglob("*.csv")))
    if not files:
        raise DataError(f"{folder}: no .csv file in this folder")
    return files


def render_page(spec: RenderSpec, seed: int) -> Page:
    """Draw the page that ``(spec, seed)`` means.

    Raises:
        ConfigError: the page is too small for any word, or a font cannot be used.
        DataError: ``text_file`` or ``tables_dir`` cannot be used.
    """
    rng = np.random.default_rng(seed)
    fonts = expand_fonts(spec.fonts)
    for attempt in range(10):
        inverted = rng.random() < spec.invert_probability
        ink, paper = (int(rng.integers(low, high + 1)) for low, high in (spec.ink, spec.background))
        low, high = spec.font_px
        canvas = Canvas(
            spec.width,
            spec.height,
            font=layouts.pick(rng, fonts),
            px=int(rng.integers(low, high + 1)) if attempt < 5 else low,
            margin=spec.margin,
            line_spacing=spec.line_spacing,
            background=ink if inverted else paper,
            ink=paper if inverted else ink,
        )
        facts = _draw(canvas, rng, spec) if canvas.rows else []
        if facts:
            page = canvas.page(spec.layout, facts)
            if rng.random() < spec.degrade:
                page = replace(page, image=degrade(page.image, rng, spec.degrader))
            return page
    raise ConfigError(
        f"render: a {spec.width} x {spec.height} px page with margin {spec.margin} has no room "
        f"for layout {spec.layout!r} at font_px {spec.font_px[0]}: enlarge it or lower font_px"
    )


def _draw(canvas: Canvas, rng: np.random.Generator, spec: RenderSpec) -> layouts.Facts:
    if spec.layout == "text":
        file = spec.text_file
        passages = builtin_passages() if file is None else _file_passages(Path(file))
        return layouts.draw_text(canvas, rng, passages, spec.random_text)
    if spec.layout == "form":
        return layouts.draw_form(canvas, rng, spec.random_text)
    if spec.layout == "receipt":
        return layouts.draw_receipt(canvas, rng, spec.random_text)
    if spec.tables_dir is None:
        table = layouts.pick(rng, builtin_tables())
    else:
        path = layouts.pick(rng, _csv_files(spec.tables_dir))
        table = _file_table(path, delimiter=spec.table_delimiter)
    return layouts.draw_table(canvas, rng, table, spec.random_text)


def render_table(
    table: Table,
    *,
    width: int | None = None,
    height: int | None = None,
    font_path: str | None = None,
    font_px: int = 24,
    max_rows: int | None = None,
    margin: int = 8,
    line_spacing: float = 1.25,
    ruled: Ruling = "grid",
) -> Page:
    """Draw a whole table, cells wrapped at 12 ems, as evaluation needs it.

    Args:
        width: px; ``None`` fits the content, else columns shrink, at worst the last go.
        height: px; ``None`` fits the content, else rows that do not fit are left out.
        font_path: ``None`` is DejaVu Sans, or Pillow's font where matplotlib is missing.
        max_rows: at most so many rows below the header.

    Raises:
        ConfigError: not even the header fits.
    """
    font = font_path or plain_font()
    kwargs = {"font": font, "px": font_px, "margin": margin, "line_spacing": line_spacing}
    probe = Canvas(1, 1, **kwargs)
    pad = max(3, font_px // 4)
    rows = [[probe.clean(cell) for cell in row] for row in (table.header, *table.rows[:max_rows])]

    def widest(column: int, words: bool) -> int:
        texts = ((n, row[column].split() if words else [row[column]]) for n, row in enumerate(rows))
        return max((probe.measure(t, n == 0) for n, cell in texts for t in cell), default=0)

    columns = range(len(table.header))
    widths = [min(widest(c, False) or font_px, 12 * font_px) for c in columns]
    if width is not None:
        room = width - 2 * margin - 1 - 2 * pad * np.arange(len(columns) + 1)
        widths = _shrink(widths, [widest(c, True) for c in columns], 3 * font_px, room.tolist())
    lines = [
        [probe.wrap(cell, w, bold=n == 0) for cell, w in zip(row, widths, strict=False)]
        for n, row in enumerate(rows)
    ]
    tall = [max((len(cell) for cell in row), default=0) or 1 for row in lines]
    if height is not None:
        room = height - 2 * margin - 1
        while tall and sum(tall) * probe.pitch > room:
            tall.pop()
    if not widths or not tall:
        raise ConfigError(
            f"render: a table of {len(table.header)} columns at font_px {font_px} does not fit "
            f"{width} x {height} px: enlarge the page or lower font_px"
        )
    canvas = Canvas(
        width or sum(widths) + 2 * pad * len(widths) + 2 * margin + 1,
        height or sum(tall) * probe.pitch + 2 * margin + 1,
        **kwargs,
    )
    layouts.draw_grid(canvas, canvas.top, lines[: len(tall)], widths, pad=pad, ruled=ruled)
    drawn = [[" ".join(cell) for cell in row] for row in lines[: len(tall)]]
    return canvas.page("table", layouts.table_facts(drawn))


def _shrink(widths: list[int], words: list[int], floor: int, room: list[int]) -> list[int]:
    """Narrow the widest of n columns until their sum is at most ``room[n]`` px.

    Columns stay as wide as their longest word while that is possible, then as wide as ``floor``;
    if that is too wide as well, the last column is left out.
    """
    for least in (words, [0] * len(words)):
        for cap in range(max(widths, default=0), floor - 1, -1):
            narrow = [min(w, max(cap, low)) for w, low in zip(widths, least, strict=True)]
            if sum(narrow) <= room[len(narrow)]:
                return narrow
    return _shrink(widths[:-1], words[:-1], floor, room) if widths else []
