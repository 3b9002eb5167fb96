"""Files to page images (PNG, JPEG, TIFF, WebP, GIF, ... and PDF), PDF words, text and JSON.

Everything here takes a path a person typed, so every refusal is a :class:`DataError` naming it.
``pypdfium2`` is imported only when a PDF is opened. PDFium is not thread-safe: call these functions
from one thread at a time (several processes are fine).
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import DataError
from ..image_processor import MAX_PIXELS, to_rgb

if TYPE_CHECKING:
    from .render import Word

FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
"""Picture formats opened (never EPS and the like, which run other programs)."""


def open_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the first frame of a picture as RGB.

    Raises:
        DataError: missing file, not a picture, truncated, or more than ``max_pixels`` pixels.
    """
    return _frames(Path(path), max_pixels, limit=1)[0]


def _frames(path: Path, max_pixels: int, limit: int | None) -> list[Image.Image]:
    """Decode up to ``limit`` frames; only TIFF has more than one page."""
    _require_file(path)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # size is checked below; odd metadata is not our business
        try:
            with Image.open(path, formats=formats) as image:
                count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
                frames = []
                for index in range(count if limit is None else min(count, limit)):
                    if count > 1:
                        image.seek(index)
                    _check_pixels(path, *image.size, max_pixels)
                    image.load()
                    frames.append(to_rgb(image).copy())
                return frames
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: too many pixels, refused: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise DataError(f"{path}: not an image (nor a PDF) this program can read") from error
        except Exception as error:  # decoders raise every kind of error on damaged bytes
            raise DataError(f"{path}: the image is truncated or damaged: {error}") from error


def _require_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")


def _check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width} x {height} pixels is more than the limit of {max_pixels} pixels"
        )


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
) -> list[Image.Image]:
    """Load a document as RGB page images.

    Args:
        path: a PDF or a picture. A TIFF gives one page per frame, any other picture one page.
        dpi: resolution for PDFs, in pixels per inch (pictures keep their own pixels).
        pages: 1-based selection such as ``"1-3,5"``; ``None`` means all.
        max_pages: keep only this many of the selected pages.
        max_pixels: refuse any page larger than this; it can lower Pillow's limit, not raise it.

    Raises:
        DataError: missing file, not an image, truncated, encrypted or corrupt PDF, no pages, page
            range out of bounds, or too many pixels; the message starts with the path.
    """
    path = Path(path)
    _require_file(path)
    if max_pages is not None and max_pages < 1:
        raise DataError(f"{path}: max_pages must be at least 1, not {max_pages}")
    if not is_pdf(path):
        limit = max_pages if pages is None else None
        frames = _frames(path, max_pixels, limit)
        chosen = parse_pages(pages, len(frames), where=str(path))[:max_pages]
        return [frames[index] for index in chosen]
    with _open_pdf(path) as document:
        chosen = parse_pages(pages, len(document), where=str(path))[:max_pages]
        return [_render(path, document, index, dpi, max_pixels) for index in chosen]


def pdf_page_count(path: str | os.PathLike[str]) -> int:
    """Return the number of pages of a PDF (raises :class:`DataError` as :func:`load_pages`)."""
    with _open_pdf(Path(path)) as document:
        return len(document)


@contextmanager
def _open_pdf(path: Path) -> Iterator[Any]:
    _require_file(path)
    try:
        import pypdfium2 as pdfium
    except ImportError as error:
        raise DataError(f"{path}: reading PDFs needs pypdfium2: pip install pypdfium2") from error
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        reason = "not a PDF, or damaged, or without pages"
        # PDFium's error code may be left over from an earlier file, so look for the lock itself
        if getattr(error, "err_code", None) in (4, 5) and b"/Encrypt" in path.read_bytes():
            reason = "the PDF is encrypted and needs a password: save an unprotected copy"
        raise DataError(f"{path}: {reason}") from error
    try:
        if len(document) == 0:
            raise DataError(f"{path}: the PDF has no pages")
        yield document
    finally:
        document.close()


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


def _render(path: Path, document: Any, index: int, dpi: float, max_pixels: int) -> Image.Image:
    with _open_page(path, document, index) as page:
        _check_pixels(path, *_page_size(path, page, index, dpi), max_pixels)
        bitmap = page.render(scale=dpi / 72, rev_byteorder=True)
        try:
            return bitmap.to_pil().convert("RGB").copy()
        finally:
            bitmap.close()


@contextmanager
def _open_page(path: Path, document: Any, index: int) -> Iterator[Any]:
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
    """Read the words of one PDF page from its text layer, in the pixels of :func:`load_pages`.

    Args:
        path: the PDF.
        page: 0-based page index.
        dpi: the resolution the page image was, or will be, rendered at.

    Returns:
        Words in the file's reading order; ``box`` is ``(x0, y0, x1, y1)`` with y down, ``line``
        counts the lines PDFium finds, ``char_x`` has the left edge of each character. Empty for a
        page without a text layer (a scan).

    Raises:
        DataError: as :func:`load_pages`.
    """
    from .render import Word

    path = Path(path)
    with _open_pdf(path) as document:
        parse_pages(str(page + 1), len(document), where=str(path))
        with _open_page(path, document, page) as pdf_page:
            width, height = _page_size(path, pdf_page, page, dpi)
            groups = list(_char_groups(pdf_page, _to_pixels(pdf_page, width, height)))
    words = []
    for line, chars in groups:
        x0, y0 = min(c[1] for c in chars), min(c[2] for c in chars)
        x1, y1 = max(c[3] for c in chars), max(c[4] for c in chars)
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            continue  # drawn outside the visible page
        text = "".join(c[0] for c in chars)
        edges = _char_edges(chars, x0, x1)
        edges = tuple(min(max(x, 0.0), float(width)) for x in edges)
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        words.append(Word(text=text, box=box, line=line, char_x=edges))
    return words


Char = tuple[str, float, float, float, float]


def _char_edges(chars: list[Char], x0: float, x1: float) -> tuple[float, ...]:
    """Left edges of the characters, or even steps where they do not run to the right."""
    edges = [x0, *(char[1] for char in chars[1:])]
    if all(a <= b for a, b in pairwise(edges)):
        return tuple(edges)
    return tuple(x0 + (x1 - x0) * i / len(chars) for i in range(len(chars)))


def _to_pixels(page: Any, width: int, height: int) -> Any:
    """Map PDF points to pixels (crop box and page rotation included) through PDFium itself."""
    import ctypes

    import pypdfium2.raw as raw

    def device(x: float, y: float) -> tuple[float, float]:
        px, py, fine = ctypes.c_int(), ctypes.c_int(), 64
        raw.FPDF_PageToDevice(page, 0, 0, width * fine, height * fine, 0, x, y, px, py)
        return px.value / fine, py.value / fine

    step = 1000.0
    (ox, oy), (ax, ay), (bx, by) = device(0, 0), device(step, 0), device(0, step)
    xx, xy, yx, yy = (ax - ox) / step, (ay - oy) / step, (bx - ox) / step, (by - oy) / step
    return lambda x, y: (ox + x * xx + y * yx, oy + x * xy + y * yy)


def _char_groups(page: Any, to_pixels: Any) -> Iterator[tuple[int, list[Char]]]:
    """Yield ``(line, characters)`` per word: split at white space, new lines and wide jumps."""
    textpage = page.get_textpage()
    try:
        line, chars = 0, []
        for text, box in _raw_chars(textpage):
            if text.isspace():
                if chars:
                    yield line, chars
                chars, line = [], line + (text == "\n")
                continue
            (xa, ya), (xb, yb) = to_pixels(box[0], box[1]), to_pixels(box[2], box[3])
            char = (text, min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb))
            if chars and _far(chars[-1], char):
                yield line, chars
                chars = []
            chars.append(char)
        if chars:
            yield line, chars
    finally:
        textpage.close()


def _far(a: Char, b: Char) -> bool:
    """Say whether two neighbouring characters are too far apart to belong to one word."""
    size = max(a[3] - a[1], a[4] - a[2], b[3] - b[1], b[4] - b[2], 1.0)
    gap_x = max(b[1] - a[3], a[1] - b[3])
    gap_y = max(b[2] - a[4], a[2] - b[4])
    return max(gap_x, gap_y) > 2 * size


def _raw_chars(textpage: Any) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    """Yield each character with its box in points; soft hyphens and control codes are dropped."""
    import pypdfium2.raw as raw

    count, index = textpage.count_chars(), 0
    while index < count:
        code, here = raw.FPDFText_GetUnicode(textpage, index), index
        index += 1
        if 0xD800 <= code < 0xDC00 and index < count:  # a surrogate pair is one character
            low = raw.FPDFText_GetUnicode(textpage, index)
            if 0xDC00 <= low < 0xE000:
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                index += 1
        if code == 2:  # PDFium's mark for a hyphen at the end of a line
            code = 0x2D
        text = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if text in " \n\r\t\u00a0" or text.isspace():
            yield ("\n" if text == "\n" else " "), (0.0, 0.0, 0.0, 0.0)
        elif text.isprintable() and text not in "\ufffe\ufffd":
            left, bottom, right, top = textpage.get_charbox(here)
            if right > left or top > bottom:
                yield text, (left, bottom, right, top)


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
