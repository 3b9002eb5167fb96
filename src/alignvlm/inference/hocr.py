"""Read pages as hOCR (http://kba.github.io/hocr-spec/1.2): XHTML with boxes and confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from statistics import median

from .. import __version__
from ..reader.page import Box
from .page_text import ReadLine, ReadWord, WordPage, paragraphs
from .span import union

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
DESCENT = 0.2
"""Share of a line's height that is below what letters stand on."""
LEVEL = 0.1
"""A line that climbs or falls by less, as a share of its height, is level: boxes are no more
precise."""
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


def baseline(line: ReadLine) -> tuple[float, float]:
    """The line that letters stand on, for a line that is not turned.

    Returns:
        Its slope, downwards to the right, and how far below the lower left corner of the line's box
        it begins (above it is negative), px.
    """
    first, last = line.words[0].box, line.words[-1].box
    (x0, y0), (x1, y1) = _middle(first), _middle(last)
    high = min(first[3] - first[1], last[3] - last[1])
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 and abs(y1 - y0) > LEVEL * high else 0.0
    heights = [(b[3] - b[1]) - abs(slope) * (b[2] - b[0]) for b in (w.box for w in line.words)]
    middles = [_middle(word.box) for word in line.words]
    middle = median(y - slope * (x - line.box[0]) for x, y in middles)
    return slope, middle + (0.5 - DESCENT) * max(median(heights), 1.0) - line.box[3]


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


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
        box = union([line.box for line in part.lines])
        parts.append(_element("par", f"{number}_{place}", _bbox(box), "\n".join(own)))
    return _element("page", number, about, "\n".join(parts)) + "\n"


def _line(line: ReadLine, number: str) -> str:
    about = _bbox(line.box)
    if line.turned:  # hOCR counts against the clock
        about += f"; textangle {-90 * line.turned % 360}"
    else:
        slope, begin = baseline(line)
        about += f"; baseline {slope:.4f} {begin:.1f}"
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
