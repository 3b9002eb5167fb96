"""Pages and what truly stands on them: receipts, contracts, and pages drawn here.

Drawn pages are the same on every machine with the same fonts and packages; their seeds start at
:data:`SEED`, above those of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from alignvlm.data.benchmarks.tables import DeepFormSource, SROIESource
from alignvlm.data.ground import as_words
from alignvlm.data.records import transcript
from alignvlm.data.synthetic.corpus import builtin_passages
from alignvlm.data.synthetic.fonts import default_fonts
from alignvlm.data.synthetic.layouts import pick
from alignvlm.data.synthetic.render import Canvas, RenderedPage, RenderSpec, render_page
from alignvlm.documents.opening import load_pages, pdf_words
from alignvlm.documents.pictures import open_image
from alignvlm.documents.words import Word

SEED = 990_000
"""First seed of drawn pages."""
KINDS = ("forms", "receipts", "text", "tables", "two columns")
LAYOUTS = {"forms": "form", "receipts": "receipt", "text": "text", "tables": "table"}
"""Kinds that the project's own renderer draws; ``two columns`` is drawn here."""
SIZES = (14, 18, 24, 40, 56)
"""Font sizes (the em), px."""
WIDTH, HEIGHT = 800, 600
"""Of drawn pages, px."""
MOST = 100
"""Drawn pages of a kind and size: seeds of different ones must not meet."""
DPI = 144
"""Resolution of contracts."""
A4_INCHES = (8.27, 11.69)
POINTS = 10.0
"""Font size of the dense A4 page."""

T = TypeVar("T")


class TruePage(NamedTuple):
    """A page image and the lines that stand on it, in reading order."""

    name: str
    image: Image.Image
    lines: list[str]


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` of the items at equal steps, all of them by default."""
    if count is None or count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def lines_of(words: Iterable[Word]) -> list[str]:
    return transcript(list(words)).split("\n")


# --- real pages ----------------------------------------------------------------------------------


def receipts(data: Path, count: int | None) -> Iterator[TruePage]:
    """SROIE's validation receipts with their transcribed lines."""
    source = SROIESource(data / "sroie", "val")
    first = {source.row(index).key: index for index in reversed(range(len(source)))}
    for name in spread(sorted(first), count):
        record = source[first[name]]
        assert record.words is not None
        image = open_image(str(record.images[0]))
        yield TruePage(Path(name).stem, image, lines_of(as_words(record.words[0])))


def contracts(data: Path, count: int | None) -> Iterator[TruePage]:
    """First pages of DeepForm's validation contracts, with the words of their text layers.

    Words are those of :func:`.pdf_words` that lie at least partly on the page: what white space
    and jumps of more than two letter heights separate. Pages without a text layer are left out.
    """
    source = DeepFormSource(data / "deepform", "val", max_pages=1, dpi=DPI)
    paths = sorted({source.path(row) for row in source.rows})
    for path in spread(paths, count):
        words = pdf_words(path, 0, dpi=DPI)
        if words:
            (image,) = load_pages(path, dpi=DPI, max_pages=1)
            yield TruePage(path.stem, image, lines_of(words))


# --- drawn pages ---------------------------------------------------------------------------------


def seed_of(kind: str, px: int, number: int) -> int:
    """The seed of a drawn page; every kind, size and number has its own."""
    if not 0 <= number < MOST:
        raise ValueError(f"page {number}: there are {MOST} of a kind and size")
    return SEED + MOST * (len(SIZES) * KINDS.index(kind) + SIZES.index(px)) + number


def drawn(kind: str, px: int, count: int) -> Iterator[TruePage]:
    """Pages of one kind with text of one size."""
    for number in range(count):
        seed = seed_of(kind, px, number)
        if kind == "two columns":
            page = two_columns(px, seed)
        else:
            size = {"width": WIDTH, "height": HEIGHT, "font_px": (px, px)}
            page = render_page(RenderSpec(layout=LAYOUTS[kind], **size), seed)  # type: ignore[arg-type]
        yield TruePage(f"{kind}, {px} px, {seed}", page.image, lines_of(page.words))


def two_columns(px: int, seed: int) -> RenderedPage:
    """Running text in two columns, half of the pages with a headline across both.

    True order: the headline, the left column, the right column. The gutter is 1.5 to 3 ems wide.
    """
    rng = np.random.default_rng(seed)
    canvas = Canvas(
        WIDTH,
        HEIGHT,
        font=pick(rng, default_fonts()),
        px=px,
        margin=8,
        line_spacing=1.25,
        background=int(rng.integers(235, 256)),
        ink=int(rng.integers(0, 61)),
    )
    gutter = round(px * rng.uniform(1.5, 3.0))
    width = (canvas.right - canvas.left - gutter) // 2
    top, rows = canvas.top, canvas.rows
    if rng.random() < 0.5:
        text = canvas.clean(pick(rng, builtin_passages()))
        (headline,) = canvas.wrap(text, canvas.right - canvas.left, bold=True, limit=1)
        canvas.put(canvas.left, top, headline, bold=True)
        canvas.next_line()
        top, rows = top + canvas.pitch, rows - 1
    for x in (canvas.left, canvas.right - width):
        lines: list[str] = []
        while len(lines) < rows:
            text = canvas.clean(pick(rng, builtin_passages()))
            lines += canvas.wrap(text, width, split=False, limit=rows - len(lines))
        for number, line in enumerate(lines):
            canvas.put(x, top + number * canvas.pitch, line)
            canvas.next_line()
    return canvas.page("two columns", [])


def a4(dpi: float, number: int = 0) -> TruePage:
    """A dense page of running text, 10 points, half an inch of margin."""
    width, height = (round(inches * dpi) for inches in A4_INCHES)
    px = round(POINTS * dpi / 72)
    spec = RenderSpec(
        layout="text", width=width, height=height, font_px=(px, px), margin=round(dpi / 2)
    )
    seed = SEED + MOST * len(SIZES) * len(KINDS) + number
    page = render_page(spec, seed)
    return TruePage(f"A4, {dpi:g} dpi, {seed}", page.image, lines_of(page.words))


def black(side: int = 6000) -> TruePage:
    """A page that is black all over."""
    return TruePage(f"black, {side} x {side} px", Image.new("RGB", (side, side)), [])
