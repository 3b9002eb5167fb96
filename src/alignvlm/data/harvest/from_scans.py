"""Pictures and scanned PDFs to grounded records, annotated by OCR: ``alignvlm data from-scans``.

What OCR is unsure of is left out, and a page with too much of it is skipped: text without a word is
taught as blank. PDF pages with a text layer of their own are left to :mod:`.from_pdf`, so that both
can be run over one folder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...documents.opening import (
    SUFFIXES,
    is_pdf,
    load_pages,
    open_page,
    open_pdf,
    parse_pages,
    render_page_of,
)
from ...documents.words import Word
from ...errors import DataError
from ...processing.image_processor import MAX_PIXELS
from ..benchmarks.forms import split_line
from .from_pdf import (
    LAST_PAGE,
    chosen_pages,
    is_sideways,
    page_dpi,
    shrink,
    spell_out,
    text_page,
)
from .harvesting import Harvest, PageFound, find_files, harvest
from .ocr_words import RapidOcrReader, Reader, text_lines

UNSURE = 0.2
"""Share of a page's characters below the confidence threshold from which it is skipped."""


def from_scans(
    folder: str | Path,
    out: str | Path,
    *,
    dpi: float = 144,
    pages: str | None = None,
    max_pages: int | None = None,
    min_words: int = 1,
    confidence: float = 0.8,
    reader: Reader | None = None,
    progress: bool = False,
) -> Harvest:
    """Make a record of every picture and every PDF page without a text layer below a folder.

    A line that OCR found is split into words in proportion to their characters.

    Args:
        folder, out, pages, max_pages, min_words, progress: as of :func:`.from_pdf.from_pdf`.
        dpi: resolution of PDF pages, px an inch; pictures keep their own pixels.
        confidence: lines of which OCR is less sure are left out, 0 to 1.
        reader: default: RapidOCR.

    Raises:
        ConfigError: RapidOCR is not installed.
        DataError: no file, no usable page, bad ``pages``, or ``out`` is of other settings.
    """
    if not 0 <= confidence <= 1:
        raise DataError(f"confidence must be between 0 and 1, not {confidence}")
    if not (math.isfinite(dpi) and dpi > 0):
        raise DataError(f"dpi must be a positive number, not {dpi}")
    chosen = None if pages is None else dict.fromkeys(parse_pages(pages, LAST_PAGE))
    files = find_files(Path(folder), SUFFIXES, without=Path(out))
    ocr = reader or RapidOcrReader()

    def read(path: Path) -> Iterator[tuple[int, PageFound | str]]:
        if is_pdf(path):
            found = _pdf_pages(path, dpi, chosen, max_pages)
        else:
            images = load_pages(path)
            indices = chosen_pages(len(images), chosen, max_pages)
            found = ((index, shrink(images[index])) for index in indices)
        for index, image in found:
            page = image if isinstance(image, str) else scan(image, ocr, confidence, min_words)
            yield index + 1, page

    settings: dict[str, Any] = {
        "dpi": dpi, "pages": pages, "max_pages": max_pages, "min_words": min_words,
        "confidence": confidence, "engine": getattr(ocr, "engine", "custom"),
    }  # fmt: skip
    return harvest(files, Path(out), read, settings, source="scan", progress=progress)


def _pdf_pages(
    path: Path, dpi: float, chosen: dict[int, None] | None, max_pages: int | None
) -> Iterator[tuple[int, Image.Image | str]]:
    """Pages of a PDF that ``from-pdf`` would not take."""
    with open_pdf(path) as document:
        for index in chosen_pages(len(document), chosen, max_pages):
            if not isinstance(text_page(path, document, index, dpi), str):
                yield index, "has a text layer: use data from-pdf"
                continue
            try:
                with open_page(path, document, index) as page:
                    page_resolution = page_dpi(page, dpi)
                yield index, render_page_of(path, document, index, page_resolution, MAX_PIXELS)
            except (DataError, RuntimeError) as error:  # PDFium's own errors are RuntimeErrors
                reason = str(error).removeprefix(f"{path}: ")
                yield index, reason.removeprefix(f"page {index + 1} ")


def scan(
    image: Image.Image, reader: Reader, confidence: float, min_words: int = 1
) -> PageFound | str:
    """A page image with the words OCR finds on it, or why it cannot be used."""
    boxes = [box for box in reader(image) if box.text.strip()]
    sure = [box for box in boxes if box.confidence >= confidence]
    if not boxes:
        return "OCR finds no text"
    letters = [sum(len(box.text) for box in found) for found in (boxes, sure)]
    if letters[1] < (1 - UNSURE) * letters[0]:
        return "OCR is not sure of the text"
    dropped: Counter[str] = Counter()
    dropped["OCR is not sure of"] = sum(
        len(box.text.split()) for box in boxes if box.confidence < confidence
    )
    grey = np.asarray(image.convert("L"))
    words: list[Word] = []
    for number, line in enumerate(text_lines(sure)):
        for box in line:
            text = " ".join(box.text.split())
            whole = Word(text, (box.x0, box.y0, box.x1, box.y1), 0, (box.x0,) * len(text))
            if is_sideways(whole):
                dropped["sideways"] += len(text.split())
                continue
            found = split_line(text, list(tighten((box.x0, box.y0, box.x1, box.y1), grey)), number)
            words += [replace(spell_out(word), line=number) for word in found]
    if not words or len(words) < min_words:
        return "no upright text" if not words else f"fewer than {min_words} words"
    return PageFound(image, words, True, +dropped)


def tighten(
    box: tuple[float, float, float, float], grey: NDArray[np.uint8]
) -> tuple[float, float, float, float]:
    """A text box without the margin that text detectors leave around the ink.

    Args:
        box: in px of the page.
        grey: the page image, ``[height, width]``.
    """
    height, width = grey.shape
    x0, y0 = max(int(box[0]), 0), max(int(box[1]), 0)
    x1, y1 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    crop = grey[y0:y1, x0:x1].astype(np.int16)
    if crop.size == 0:
        return box
    # the margin is paper, even where bold type fills most of the box
    paper = np.median(np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]]))
    contrast = np.abs(crop - paper)
    ink = contrast > max(contrast.max() / 2, 1)
    columns, rows = ink.any(0).nonzero()[0], ink.any(1).nonzero()[0]
    if len(columns) == 0:
        return box
    return (
        float(x0 + columns[0]), float(y0 + rows[0]),
        float(x0 + columns[-1] + 1), float(y0 + rows[-1] + 1),
    )  # fmt: skip
