"""Read pages as hOCR (http://kba.github.io/hocr-spec/1.2): XHTML with boxes and confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .. import __version__
from ..reader.page import Box
from .page_reader import ReadLine, ReadWord, WordPage
from .page_text import paragraphs

HEAD = f"""\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
    "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
<title></title>
<meta http-equiv="Content-Type" content="text/html; charset=utf-8"/>
<meta name="ocr-system" content="alignvlm {__version__}"/>
<meta name="ocr-capabilities" content="ocr_page ocr_par ocr_line ocrx_word"/>
</head>
<body>
"""
TAIL = "</body>\n</html>\n"
PARTS = {"page": ("div", "ocr_page"), "par": ("p", "ocr_par"), "line": ("span", "ocr_line")}


def hocr_pages(file: str, pages: Sequence[WordPage], document: int = 1) -> str:
    """The pages of a document as elements to stand between :data:`HEAD` and :data:`TAIL`.

    Args:
        document: its number in the hOCR file, from 1: ids are unique in a file.
    """
    return "".join(_page(file, page, f"{document}_{page.page}") for page in pages)


def as_hocr(file: str, pages: Sequence[WordPage]) -> str:
    """A document as a hOCR file."""
    return HEAD + hocr_pages(file, pages) + TAIL


def _page(file: str, page: WordPage, number: str) -> str:
    quoted = file.replace("\\", "\\\\").replace('"', '\\"')
    about = f'image "{quoted}"; {_bbox((0, 0, page.width, page.height))}; ppageno {page.page - 1}'
    if page.scale is not None:
        dpi = round(page.scale * 72)
        about += f"; scan_res {dpi} {dpi}"
    parts, lines = [], 0
    for place, part in enumerate(paragraphs(page.lines), start=1):
        own = []
        for line in part.lines:
            lines += 1
            assert isinstance(line, ReadLine)
            own.append(_line(line, f"{number}_{lines}"))
        box = _around([line.box for line in part.lines])
        parts.append(_element("par", f"{number}_{place}", _bbox(box), "\n".join(own)))
    return _element("page", number, about, "\n".join(parts)) + "\n"


def _line(line: ReadLine, number: str) -> str:
    about = _bbox(line.box)
    if line.turned:  # hOCR counts against the clock
        about += f"; textangle {-90 * line.turned % 360}"
    words = [_word(word, f"{number}_{i}") for i, word in enumerate(line.words, start=1)]
    return _element("line", number, about, " ".join(words))


def _word(word: ReadWord, number: str) -> str:
    about = f"{_bbox(word.box)}; x_wconf {round(100 * word.confidence)}"
    text = escape(word.text)
    return f'<span class="ocrx_word" id="word_{number}" title="{about}">{text}</span>'


def _element(kind: str, number: str, about: str, inside: str) -> str:
    tag, name = PARTS[kind]
    gap = "\n" if kind != "line" and inside else ""
    about = escape(about)
    return f'<{tag} class="{name}" id="{kind}_{number}" title="{about}">{gap}{inside}{gap}</{tag}>'


def _bbox(box: Box) -> str:
    """Whole px, as hOCR has them: all of the box is inside."""
    x0, y0, x1, y1 = box
    return f"bbox {math.floor(x0)} {math.floor(y0)} {math.ceil(x1)} {math.ceil(y1)}"


def _around(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes)
    return min(x0), min(y0), max(x1), max(y1)
