"""Draw page images whose every word and character position is known.

:func:`render_page` makes training pages, :func:`render_table` draws a given table.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...errors import ConfigError, DataError
from . import layouts
from .canvas import Canvas, RenderedPage
from .corpus import Table, builtin_passages, builtin_tables, passages_from, table_from_csv
from .degrade import Degrader, degrade
from .fonts import expand_fonts, plain_font

Layout = Literal["text", "form", "receipt", "table"]
Ruling = Literal["none", "header", "rows", "grid"]


class RenderSpec(BaseModel):
    """How pages look; ``(spec, seed)`` fixes a page to the last pixel.

    ``font_px`` is the font size (the em), both ends included; ``background`` and ``ink`` are ranges
    of grey. ``fonts`` are font files, folders of them, names of default fonts (``"DejaVuSans"``),
    ``"pillow:default"``, or ``"system"`` (see ``fonts.system_fonts``); empty is
    ``default_fonts()``. ``random_text`` is the fraction of words replaced by random strings: it
    teaches reading rather than guessing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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


_file_passages = functools.lru_cache(maxsize=8)(passages_from)
_file_table = functools.lru_cache(maxsize=1024)(table_from_csv)


@functools.lru_cache(maxsize=8)
def _csv_files(folder: str) -> tuple[Path, ...]:
    files = tuple(sorted(Path(folder).rglob("*.csv")))
    if not files:
        raise DataError(f"{folder}: no .csv file in this folder")
    return files


def render_page(spec: RenderSpec, seed: int) -> RenderedPage:
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
) -> RenderedPage:
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
