"""Files to page images (pictures and PDF), PDF words, text and JSON.

Everything here takes a path a person typed, so every refusal is a :class:`DataError` naming it.
``pypdfium2`` is imported only when a PDF is opened. PDFium is not thread-safe: call these functions
from one thread at a time (several processes are fine).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import DataError
from ..processing.image_processor import MAX_PIXELS
from .pdf_fields import flatten, words_with_fields
from .pdf_text import char_edges, char_groups, to_pixels
from .pictures import PICTURE_SUFFIXES, Picture, check_pixels, open_picture, require_file

if TYPE_CHECKING:
    from .words import Word

SUFFIXES = (".pdf", *PICTURE_SUFFIXES)
"""What is taken from a folder; a file named outright may be called anything."""
LOCKED = "the PDF is encrypted: save a copy that opens without a password"


class LockedPdfError(DataError):
    """A PDF that needs a password, and none was given; the command line's verbs with an option for
    it say so."""


def spell_pages(pages: Sequence[int]) -> str:
    """``[1, 2, 3, 5]`` as ``1-3, 5``."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][1] + 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_pages(pages: str | None, count: int, *, where: str = "pages") -> list[int]:
    """Turn ``"1-3,5"`` (1-based, inclusive; ``"4-"`` runs to the end) into 0-based page indices.

    Raises:
        DataError: unreadable text, a backwards range, or a page outside ``1..count``.
    """
    if pages is None:
        return list(range(count))
    chosen: list[int] = []
    for part in str(pages).split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:(-)\s*(\d{1,9})?\s*)?", part, re.ASCII)
        if not match:
            raise DataError(f"{where}: cannot read the page range {pages!r}; write it like 1-3,5")
        first = int(match[1])
        last = int(match[3]) if match[3] else (count if match[2] else first)
        if first < 1 or max(first, last) > count:
            raise DataError(f"{where}: page range {pages!r} is outside 1-{count}")
        if last < first:
            raise DataError(f"{where}: page range {part.strip()!r} runs backwards")
        chosen.extend(range(first - 1, last))
    return chosen


def is_hidden(path: Path) -> bool:
    """Whether a path within a folder has a part such as ``._page.png`` or ``.cache``."""
    return any(part.startswith(".") for part in path.parts)


def is_pdf(path: str | os.PathLike[str]) -> bool:
    """Say whether a file is a PDF, by its first bytes or else by its name."""
    with open(path, "rb") as file:
        return b"%PDF-" in file.read(1024) or Path(path).suffix.lower() == ".pdf"


def load_pages(
    path: str | os.PathLike[str],
    *,
    dpi: float = 144,
    pages: str | None = None,
    max_pages: int | None = None,
    max_pixels: int = MAX_PIXELS,
    password: str | None = None,
) -> list[Image.Image]:
    """Load a document as RGB page images.

    Args:
        path: a PDF or a picture. A TIFF gives one page per frame, any other picture one page.
        dpi: resolution for PDFs, in pixels per inch (pictures keep their own pixels).
        pages: 1-based selection such as ``"1-3,5"``; ``None`` means all.
        max_pages: keep only this many of the selected pages.
        max_pixels: a picture that is larger is refused, a PDF's page rendered at a lower
            resolution; it can lower Pillow's limit, not raise it.
        password: opens an encrypted PDF.

    Raises:
        DataError: missing file, not an image, truncated, encrypted or corrupt PDF, no pages, page
            range out of bounds, or too many pixels; the message starts with the path.
    """
    if max_pages is not None and max_pages < 1:
        raise DataError(f"{path}: max_pages must be at least 1, not {max_pages}")
    with open_document(path, password=password) as document:
        chosen = parse_pages(pages, document.count, where=str(path))[:max_pages]
        return [document.render(index, dpi, max_pixels) for index in chosen]


@contextmanager
def open_document(
    path: str | os.PathLike[str],
    *,
    data: bytes | None = None,
    password: str | None = None,
    pdf_pixels: int | None = None,
) -> Iterator[Picture | PdfDocument]:
    """Open a PDF or a picture; a page is read only when it is rendered.

    Args:
        path: the file; with ``data`` only a name for messages.
        data: the file's bytes, where they do not come from a file.
        password: opens an encrypted PDF.
        pdf_pixels: a PDF's page is rendered at no more, whatever ``dpi`` and ``max_pixels`` say.

    Yields:
        ``count``, the number of pages, and ``render(index, dpi, max_pixels)``, an RGB image of the
        0-based page ``index``.

    Raises:
        DataError: as :func:`load_pages`.
    """
    path = Path(path)
    require_file(path, data)
    if is_pdf(path) if data is None else b"%PDF-" in data[:1024]:
        with open_pdf(path, data=data, password=password) as pdf:
            yield PdfDocument(path, pdf, pdf_pixels)
    else:
        with open_picture(path, data) as picture:
            yield picture


class PdfDocument:
    """An open PDF, as :class:`Picture`; see :func:`open_document`."""

    def __init__(self, path: Path, document: Any, pdf_pixels: int | None = None) -> None:
        self.path, self.document, self.count = path, document, len(document)
        self.pdf_pixels = pdf_pixels

    def scale(self, index: int, dpi: float, max_pixels: int) -> float:
        """Px of a page's image per PDF point: ``dpi / 72``, or less where ``max_pixels`` would be
        exceeded: a photo placed at 72 dpi is as large as a poster.

        Raises:
            DataError: a damaged page, or ``dpi`` is not a positive number.
        """
        if self.pdf_pixels is not None:
            max_pixels = min(max_pixels, self.pdf_pixels)
        with open_page(self.path, self.document, index) as page:
            width, height = _page_size(self.path, page, index, dpi)
        if width * height <= max_pixels:
            return dpi / 72
        fits = math.sqrt(max_pixels / (width * height))
        # sides are rounded up: a pixel of each is kept back
        return dpi / 72 * fits * max(1 - 1 / (fits * min(width, height)), 0.5)

    def render(self, index: int, dpi: float, max_pixels: int) -> Image.Image:
        """A page as RGB, of at most ``max_pixels``; see :meth:`scale`."""
        dpi = self.scale(index, dpi, max_pixels) * 72
        return render_page_of(self.path, self.document, index, dpi, max_pixels)


def pdf_page_count(path: str | os.PathLike[str]) -> int:
    """Return the number of pages of a PDF (raises :class:`DataError` as :func:`load_pages`)."""
    with open_pdf(Path(path)) as document:
        return len(document)


@contextmanager
def open_pdf(
    path: Path, *, data: bytes | None = None, password: str | None = None
) -> Iterator[Any]:
    """A pypdfium2 document, closed at the end.

    Raises:
        DataError: unreadable, locked, or no PDF.
    """
    require_file(path, data)
    try:
        import pypdfium2 as pdfium
    except ImportError as error:
        raise DataError(f"{path}: reading PDFs needs pypdfium2: pip install pypdfium2") from error
    try:
        document = pdfium.PdfDocument(path if data is None else data, password=password)
    except pdfium.PdfiumError as error:
        data = path.read_bytes() if data is None else data
        reason = _why_refused(data, password, getattr(error, "err_code", None))
        raise (LockedPdfError if reason == LOCKED else DataError)(f"{path}: {reason}") from error
    try:
        yield document
    finally:
        document.close()


def _why_refused(data: bytes, password: str | None, code: int | None) -> str:
    import pypdfium2.raw as raw

    # PDFium's error code may be left over from an earlier file, so look for the lock itself
    if code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY) and b"/Encrypt" in data:
        if code == raw.FPDF_ERR_SECURITY:
            return "the PDF is encrypted in a way PDFium does not know: save an unprotected copy"
        if password is None:
            return LOCKED
        return "the PDF is encrypted and this is not its password"
    # pypdfium2 treats a good file without pages as one that does not load
    secret = None if password is None else password.encode() + b"\0"
    document = raw.FPDF_LoadMemDocument64(data, len(data), secret)
    if not document:
        return "not a PDF, or damaged"
    raw.FPDF_CloseDocument(document)
    return "the PDF has no pages"


def _page_size(path: Path, page: Any, index: int, dpi: float) -> tuple[int, int]:
    """Size in pixels, as PDFium rounds it; the one place image and word boxes agree on."""
    scale = dpi / 72
    width, height = page.get_size()
    if not (math.isfinite(scale) and scale > 0):
        raise DataError(f"{path}: dpi must be a positive number, not {dpi}")
    size = math.ceil(width * scale), math.ceil(height * scale)
    if min(size) < 1:
        raise DataError(f"{path}: page {index + 1} has no area")
    return size


def render_page_of(
    path: Path, document: Any, index: int, dpi: float, max_pixels: int
) -> Image.Image:
    """A page of an open PDF as an RGB image; refuses one of more than ``max_pixels``."""
    with open_page(path, document, index) as page:
        check_pixels(path, *_page_size(path, page, index, dpi), max_pixels)
        bitmap = page.render(scale=dpi / 72, rev_byteorder=True)
        try:
            return bitmap.to_pil().convert("RGB").copy()
        finally:
            bitmap.close()


@contextmanager
def open_page(path: Path, document: Any, index: int) -> Iterator[Any]:
    """A page of an open PDF, closed at the end."""
    import pypdfium2 as pdfium

    try:
        if document.formenv is None:
            document.init_forms()  # so that filled-in form fields are drawn
        page = document[index]
    except pdfium.PdfiumError as error:
        raise DataError(f"{path}: page {index + 1} is damaged: {error}") from error
    try:
        yield page
    finally:
        page.close()


def pdf_words(path: str | os.PathLike[str], page: int, *, dpi: float = 144) -> list[Word]:
    """Read the words of one PDF page from its text layer, its form fields and its annotations, in
    the pixels of :func:`load_pages`.

    Args:
        path: the PDF.
        page: 0-based page index.
        dpi: the resolution the page image was, or will be, rendered at.

    Returns:
        Words in the file's reading order; ``box`` is ``(x0, y0, x1, y1)`` with y down, ``line``
        counts the lines PDFium finds, ``char_x`` has the left edge of each character. Empty for a
        page without any (a scan).

    Raises:
        DataError: as :func:`load_pages`.
    """
    path = Path(path)
    with open_pdf(path) as document:
        parse_pages(str(page + 1), len(document), where=str(path))
        with open_page(path, document, page) as pdf_page:
            size = _page_size(path, pdf_page, page, dpi)
            place = to_pixels(pdf_page, *size)
            words = _page_words(pdf_page, place, size)
            if not flatten(pdf_page):
                return words
        with open_page(path, document, page) as pdf_page:
            return words_with_fields(_page_words(pdf_page, place, size), words)


def _page_words(page: Any, place: Any, size: tuple[int, int]) -> list[Word]:
    """Words of a page's text layer that lie within it; ``place`` maps points to pixels."""
    from .words import Word

    words, (width, height) = [], size
    for line, chars in char_groups(page, place):
        x0, y0 = min(c[1] for c in chars), min(c[2] for c in chars)
        x1, y1 = max(c[3] for c in chars), max(c[4] for c in chars)
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            continue  # drawn outside the visible page
        text = "".join(c[0] for c in chars)
        edges = char_edges(chars, x0, x1)
        edges = tuple(min(max(x, 0.0), float(width)) for x in edges)
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        words.append(Word(text=text, box=box, line=line, char_x=edges))
    return words


def read_text(path: Path) -> str:
    """Read a UTF-8 file; raises DataError naming the file and the row."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{row}: not UTF-8 text: {error.reason}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file without double keys; raises DataError naming the file and the row."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: {twice!r} is there twice")
        return result

    try:
        return json.loads(read_text(path), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error}") from error
