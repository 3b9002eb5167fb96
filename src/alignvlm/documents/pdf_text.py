"""Characters of a PDF page's text layer, put together to words for :func:`.opening.pdf_words`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Char = tuple[str, float, float, float, float]


def char_edges(chars: list[Char], x0: float, x1: float) -> tuple[float, ...]:
    """Left edges of the characters, or even steps where they do not run to the right."""
    edges = [x0, *(char[1] for char in chars[1:])]
    if all(a <= b for a, b in pairwise(edges)):
        return tuple(edges)
    return tuple(x0 + (x1 - x0) * i / len(chars) for i in range(len(chars)))


def to_pixels(page: Any, width: int, height: int) -> Any:
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


def char_groups(page: Any, place: Any) -> Iterator[tuple[int, list[Char]]]:
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
            (xa, ya), (xb, yb) = place(box[0], box[1]), place(box[2], box[3])
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
