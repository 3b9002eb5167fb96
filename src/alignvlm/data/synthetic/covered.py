"""Pages with covered text: visual caption restoration (Zhang et al., 2024, VCR-Wiki).

Pages are drawn from any plain text: a paragraph of at most five lines in black on white, in which
runs of five words are covered by a white box that leaves thin strips at the top and at the bottom
of the small letters (and what sticks out above and below). The two settings, easy and hard, differ
in the strips alone: the same text is covered on the same page.

As in the paper, words with capitals or digits and words next to punctuation are not covered, and
at most half of a sentence is. Unlike VCR-Wiki's, pages have no picture above the text, and the
words to leave alone are found by their letters, not by a parser.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from ...errors import DataError
from .fonts import drawn_as, load_font, plain_font

STRIPS = {"easy": 2, "hard": 1}
"""Setting to how many px of the small letters stay visible at the top and at the bottom.

The paper's generator (tianyu-z/VCR, ``create_vcr.py``) covers 0.46-0.77 (easy) or 0.41-0.80 (hard)
of a line of 22 px: at its 20 px font, 2 and 1 of the 11 rows of a small letter stay at either end.
"""
VCR_PROMPT = (
    "What is the covered texts in the image? Please restore the covered texts without outputting "
    "the explanations."
)
"""The prompt of the paper and of lmms-eval's ``vcr_wiki``, word for word."""
_COVERABLE = re.compile(r"[a-z]+(?:['’-][a-z]+)*")
_SENTENCE_END = re.compile(r"[.!?][\"')]*$")


@dataclass(frozen=True)
class VCRStyle:
    """How pages are made; with the corpus and the setting it fixes them to the last pixel.

    Attributes:
        pages: how many pages, at most (paragraphs without five plain words in a row are left out).
        seed: chooses the paragraphs and the covered words.
        font: a font file; ``None`` is DejaVu Sans, or Pillow's font where matplotlib is missing.
        font_px: px per em.
        width: px of a page; its height follows from the lines.
        lines: at most so many lines a page.
        words: length of a covered text, in words.
        fraction: of a sentence's words that may be covered.
    """

    pages: int = 500
    seed: int = 0
    font: str | None = None
    font_px: int = 20
    width: int = 640
    lines: int = 5
    words: int = 5
    fraction: float = 0.5
    margin: int = 8

    def checked(self, setting: str = "easy") -> VCRStyle:
        """Return the style with its font resolved; raises DataError if no page can be made."""
        for name in ("pages", "font_px", "width", "lines", "words"):
            if getattr(self, name) < 1:
                raise DataError(f"vcr: {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise DataError(f"vcr: fraction must be within 0 to 1, not {self.fraction}")
        style = replace(self, font=self.font or plain_font())
        if 2 * STRIPS[setting] >= small_letters(style):
            raise DataError(f"vcr: font_px {self.font_px} is too small to cover anything")
        return style


def small_letters(style: VCRStyle) -> int:
    """Height of the small letters, px; ``style`` has its font."""
    assert style.font is not None
    return int(-load_font(style.font, style.font_px).getbbox("x", anchor="ls")[1])


@dataclass(frozen=True)
class Covered:
    """A page to draw: its id, its lines of words, and which words (``start``, ``end``) are covered.

    Words are counted over all lines.
    """

    id: str
    lines: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """The covered texts in reading order."""
        words = [word for line in self.lines for word in line]
        return tuple(" ".join(words[start:end]) for start, end in self.spans)


def seeded(seed: int, sample: str) -> np.random.Generator:
    """A random generator for one sample, the same wherever and whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}/{sample}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def lay_out(text: str, style: VCRStyle) -> tuple[tuple[str, ...], ...]:
    """Break a paragraph into the lines of a page; what does not fit is left out."""
    assert style.font is not None
    font, room = load_font(style.font, style.font_px), style.width - 2 * style.margin
    drawn = "".join(drawn_as(style.font, char) for char in text)
    lines: list[list[str]] = [[]]
    for word in drawn.split():
        if font.getlength(" ".join([*lines[-1], word])) > room:
            if len(lines) == style.lines or font.getlength(word) > room:
                break
            lines.append([])
        lines[-1].append(word)
    return tuple(tuple(line) for line in lines if line)


def choose_spans(
    words: list[str], style: VCRStyle, rng: np.random.Generator
) -> tuple[tuple[int, int], ...]:
    """Choose the words to cover, sentence by sentence, at least one free word between two texts."""
    spans: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(words) + 1):
        if end < len(words) and not _SENTENCE_END.search(words[end - 1]):
            continue
        plain = [bool(_COVERABLE.fullmatch(word)) for word in words[start:end]]
        size, taken = style.words, np.zeros(end - start, dtype=bool)
        starts = [i for i in range(end - start - size + 1) if all(plain[i : i + size])]
        for i in rng.permutation(starts).astype(int).tolist():
            if taken.sum() + size > style.fraction * len(plain):
                break
            if not taken[max(0, i - 1) : i + size + 1].any():
                taken[i : i + size] = True
                spans.append((start + i, start + i + size))
        start = end
    return tuple(sorted(spans))


def cover(text: str, sample: str, style: VCRStyle, draw: str) -> Covered | None:
    """A paragraph as a page with words covered as ``draw`` says; ``None``: none can be covered."""
    lines = lay_out(text, style)
    words = [word for line in lines for word in line]
    spans = choose_spans(words, style, seeded(style.seed, draw))
    return Covered(sample, lines, spans) if spans else None


def draw_page(page: Covered, style: VCRStyle, strip: int) -> Image.Image:
    """Draw a page and cover its spans but for ``strip`` px at either end of the small letters."""
    assert style.font is not None
    font = load_font(style.font, style.font_px)
    ascent, descent = font.getmetrics()
    small = small_letters(style)
    pitch = max(ascent + descent, round(1.25 * style.font_px))
    size = (style.width, 2 * style.margin + pitch * len(page.lines))
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    covered = {i for start, end in page.spans for i in range(start, end)}
    joined = {i for start, end in page.spans for i in range(start, end - 1)}
    number = 0
    for row, line in enumerate(page.lines):
        base = style.margin + row * pitch + ascent
        pen.text((style.margin, base), " ".join(line), fill="black", font=font, anchor="ls")
        for place in range(len(line)):
            if number in covered:
                before = " ".join([*line[:place], ""])
                # the space between two covered words is covered as well
                text = line[place] + (" " if number in joined and place + 1 < len(line) else "")
                left = style.margin + font.getlength(before)
                right = style.margin + font.getlength(before + text)
                box = (round(left), base - small + strip, round(right) - 1, base - strip - 1)
                pen.rectangle(box, fill="white")
            number += 1
    return image
