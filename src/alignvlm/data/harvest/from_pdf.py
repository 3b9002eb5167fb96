"""PDFs with a text layer to grounded records: ``alignvlm data from-pdf``.

A text layer is not made for teaching. What it says is believed only where ink is: words that are
invisible, sideways, printed twice or cut off by the page's edge are left out, and pages whose fonts
do not say which letters they draw, or that are scans with little more than a stamp in the text
layer, are skipped, since their targets would be wrong.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...documents.opening import open_page, open_pdf, parse_pages, pdf_words, render_page_of
from ...documents.words import Word
from ...errors import DataError
from ...processing.image_processor import MAX_PIXELS
from .harvesting import Harvest, PageFound, find_files, harvest

PAGE_PIXELS = 16_000_000
"""Larger pages (posters, plans) are rendered at a lower resolution; A4 at 400 dpi is below it."""
INK = 40
"""Grey levels between the lightest and the darkest pixel of a box in which something is written."""
THIN = 0.25
"""Words less tall or wide, px, cannot be seen; a hyphen in small print is just below one."""
UNREADABLE = 0.1
"""Share of characters without a meaning from which a page is skipped."""
SCAN = 0.5
"""Share of a page that pictures cover if it is a scan."""
EXPLAINED = 0.3
"""Share of a scan's ink that must lie under words, or its text layer is only a stamp."""
LAST_PAGE = 100_000
LIGATURES = {
    "\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl",
    "\ufb05": "st", "\ufb06": "st",
}  # fmt: skip


def from_pdf(
    folder: str | Path,
    out: str | Path,
    *,
    dpi: float = 144,
    pages: str | None = None,
    max_pages: int | None = None,
    min_words: int = 1,
    progress: bool = False,
) -> Harvest:
    """Make a record of every page with a text layer, of every PDF below a folder.

    Args:
        folder: looked through at all depths; or one PDF.
        out: gets ``records.jsonl`` and ``pages/``; a rerun goes on.
        dpi: resolution in pixels per inch; pages of more than ``PAGE_PIXELS`` get a lower one.
        pages: of each PDF, such as ``"1-3,5"``; those it does not have are passed over.
        max_pages: at most so many of each PDF's chosen pages.
        min_words: skip pages with fewer words.
        progress: show a bar on stderr.

    Raises:
        DataError: no PDF, no usable page, bad ``pages``, or ``out`` is of other settings.
    """
    if not (math.isfinite(dpi) and dpi > 0):
        raise DataError(f"dpi must be a positive number, not {dpi}")
    chosen = None if pages is None else dict.fromkeys(parse_pages(pages, LAST_PAGE))

    def read(path: Path) -> Iterator[tuple[int, PageFound | str]]:
        with open_pdf(path) as document:
            count = len(document)
            for index in chosen_pages(count, chosen, max_pages):
                yield index + 1, text_page(path, document, index, dpi, min_words)

    settings = {"dpi": dpi, "pages": pages, "max_pages": max_pages, "min_words": min_words}
    files = find_files(Path(folder), (".pdf",), without=Path(out))
    return harvest(files, Path(out), read, settings, source="pdf", progress=progress)


def chosen_pages(
    count: int, chosen: dict[int, None] | None, max_pages: int | None
) -> Sequence[int]:
    """Page indices to read of a document with ``count`` pages."""
    indices = range(count) if chosen is None else [i for i in chosen if i < count]
    return indices[:max_pages]


def text_page(
    path: Path, document: Any, index: int, dpi: float, min_words: int = 1
) -> PageFound | str:
    """One page of an open PDF with its words, or why it cannot be used."""
    try:
        with open_page(path, document, index) as page:
            dpi = page_dpi(page, dpi)
            pictures, unreadable = _picture_share(page), _unreadable_share(page)
        words = pdf_words(path, index, dpi=dpi)
        if not words:
            return "no text layer"
        if unreadable > UNREADABLE:
            return "the fonts do not say which letters they draw"
        image = render_page_of(path, document, index, dpi, MAX_PIXELS)
    except (DataError, RuntimeError) as error:  # PDFium's own errors are RuntimeErrors
        return str(error).removeprefix(f"{path}: ").removeprefix(f"page {index + 1} ")
    grey = np.asarray(image.convert("L"))
    words, dropped = clean_words(words, grey)
    if not words:
        return f"none of its words can be used: {dropped.most_common(1)[0][0]}"
    if len(words) < min_words:
        return f"fewer than {min_words} words"
    if pictures >= SCAN and explained_ink(words, grey) < EXPLAINED:
        return "a scan with hardly any text layer"
    return PageFound(image, words, pictures >= SCAN, dropped)


def page_dpi(page: Any, dpi: float) -> float:
    """The resolution asked for, or that which keeps a huge page within ``PAGE_PIXELS``."""
    width, height = page.get_size()
    if min(width, height) <= 0:
        return dpi  # refused when it is rendered
    return min(dpi, 72 * math.sqrt(PAGE_PIXELS / (width * height)))


def _picture_share(page: Any) -> float:
    """Share of the page under its largest picture."""
    import pypdfium2.raw as raw

    left, bottom, right, top = page.get_bbox()
    area = max((right - left) * (top - bottom), 1e-6)
    largest = 0.0
    for picture in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4):
        x0, y0, x1, y1 = picture.get_bounds()
        wide, high = min(x1, right) - max(x0, left), min(y1, top) - max(y0, bottom)
        largest = max(largest, max(wide, 0) * max(high, 0) / area)
    return largest


def _unreadable_share(page: Any) -> float:
    """Share of the text layer's characters whose meaning the file does not tell."""
    import pypdfium2.raw as raw

    textpage = page.get_textpage()
    try:
        bad = total = 0
        for index in range(textpage.count_chars()):
            code = raw.FPDFText_GetUnicode(textpage, index)
            if code < 128 and chr(code).isspace():
                continue
            total += 1
            private = 0xE000 <= code < 0xF900 or code in (0, 0xFFFD)
            bad += private or raw.FPDFText_HasUnicodeMapError(textpage, index) == 1
        return bad / max(total, 1)
    finally:
        textpage.close()


def clean_words(words: Sequence[Word], grey: NDArray[np.uint8]) -> tuple[list[Word], Counter[str]]:
    """Keep the words that can be seen and read on a page.

    Args:
        words: as :func:`alignvlm.documents.opening.pdf_words` gives them.
        grey: the page image, ``[height, width]``.

    Returns:
        Words with ligatures spelled out, lines numbered from 0; and what was left out, by reason.
    """
    dropped: Counter[str] = Counter()
    kept: list[Word] = []
    slanted = sideways_lines(words)
    printed: dict[str, list[Word]] = {}
    numbers: dict[int, int] = {}
    for word in words:
        word = spell_out(word)
        reason = _fault(word, grey, slanted)
        twins = printed.setdefault(word.text, [])
        if reason is None and any(_same_place(word, twin) for twin in twins):
            reason = "printed twice"
        if reason is not None:
            dropped[reason] += 1
            continue
        twins.append(word)
        kept.append(replace(word, line=numbers.setdefault(word.line, len(numbers))))
    return kept, dropped


def _fault(word: Word, grey: NDArray[np.uint8], slanted: set[int]) -> str | None:
    x0, y0, x1, y1 = word.box
    width = grey.shape[1]
    if not word.text.strip() or min(x1 - x0, y1 - y0) < THIN:
        return "without size"
    # what lies outside was moved onto the edge
    if word.char_x[-1] >= width or sum(x <= 0 for x in word.char_x) > 1:
        return "cut off by the edge"
    if word.line in slanted or is_sideways(word):
        return "sideways"
    box = grey[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)]
    if box.size == 0 or int(box.max()) - int(box.min()) < INK:
        return "not visible"
    return None


def is_sideways(word: Word) -> bool:
    """Whether three or more characters run down, up or across the page rather than along a line."""
    x0, y0, x1, y1 = word.box
    # even "lll" is 0.66 em wide and 0.75 em tall; standing on end it is the other way round
    return len(word.text) >= 3 and (y1 - y0) * len(word.text) > 4.5 * (x1 - x0)


def sideways_lines(words: Sequence[Word]) -> set[int]:
    """Lines most of whose longer words are sideways; so are their short ones, which do not show."""
    votes: dict[int, list[bool]] = {}
    for word in words:
        if len(word.text) >= 3:
            votes.setdefault(word.line, []).append(is_sideways(word))
    return {line for line, found in votes.items() if 2 * sum(found) > len(found)}


def _same_place(word: Word, twin: Word) -> bool:
    """Whether two boxes share more than half of their union: bold type is often printed twice."""
    a, b = word.box, twin.box
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return False
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return wide * high > 0.5 * (sum(areas) - wide * high)


def spell_out(word: Word) -> Word:
    """Ligatures as letters, accents joined to theirs, and letters of one glyph side by side."""
    text, edges = "", []
    for char, x in zip(word.text, word.char_x, strict=True):
        if text and unicodedata.combining(char):
            joined = unicodedata.normalize("NFC", text[-1] + char)
            if len(joined) == 1:
                text = text[:-1] + joined
                continue
        letters = LIGATURES.get(char, char)
        text += letters
        edges += [x] * len(letters)
    return replace(word, text=text, char_x=_spread(edges, word.box[2]))


def _spread(edges: list[float], right: float) -> tuple[float, ...]:
    """Letters that start at one place share the room up to the next one."""
    result, start = list(edges), 0
    while start < len(edges):
        end = start + 1
        while end < len(edges) and edges[end] - edges[start] < 1e-6:
            end += 1
        room = (edges[end] if end < len(edges) else max(right, edges[start])) - edges[start]
        for place in range(start, end):
            result[place] = edges[start] + room * (place - start) / (end - start)
        start = end
    return tuple(result)


def explained_ink(words: Sequence[Word], grey: NDArray[np.uint8]) -> float:
    """Share of a page's ink (what differs from its most common grey) that lies under words."""
    paper = int(np.bincount(grey.ravel(), minlength=256).argmax())
    ink = np.abs(grey.astype(np.int16) - paper) > 2 * INK
    under = np.zeros_like(ink)
    for word in words:
        x0, y0, x1, y1 = word.box
        under[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = True
    return float((ink & under).sum() / max(int(ink.sum()), 1))


def shrink(image: Image.Image) -> Image.Image:
    """The picture, made smaller if it has more than ``PAGE_PIXELS``."""
    factor = math.sqrt(PAGE_PIXELS / (image.width * image.height))
    if factor >= 1:
        return image
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)
