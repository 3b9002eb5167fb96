"""Small pages drawn for readers, with the words' ink known to the pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alignvlm.data.synthetic.fonts import plain_font


class Piece(NamedTuple):
    """A text to draw: left and top of its line, px, and the size of its letters, px."""

    text: str
    x: int
    y: int
    px: int = 24


LETTER = [
    Piece("Annual Report", 40, 30, 40),
    Piece("Harbour dues rose by 4.5 %", 40, 110),
    Piece("and the ferries ran on time.", 40, 144),
    Piece("Signed: M. Lopez & Sons", 40, 230),
]


def page(pieces: Sequence[Piece] = LETTER, size: tuple[int, int] = (560, 300)) -> Image.Image:
    """A white page with black text."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for piece in pieces:
        draw.text((piece.x, piece.y), piece.text, "black", _font(piece.px))
    return image


def ink(piece: Piece) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Each word of a piece with the box of its ink, px."""
    found, font = [], _font(piece.px)
    for number, word in enumerate(piece.text.split()):
        before = " ".join([*piece.text.split()[:number], ""])
        left = piece.x + font.getlength(before)
        x0, y0, x1, y1 = font.getbbox(word)
        found.append((word, (left + x0, piece.y + y0, left + x1, piece.y + y1)))
    return found


def baseline(piece: Piece) -> float:
    """y of the line that a piece's letters stand on, px."""
    return piece.y + _font(piece.px).getmetrics()[0]


def covered(
    image: Image.Image, box: tuple[float, float, float, float], by: Sequence[float]
) -> float:
    """Share of the ink within ``box`` that lies within the box ``by``."""
    dark = np.asarray(image.convert("L")) < 128
    own = _mask(dark.shape, box) & dark
    return float((own & _mask(dark.shape, by)).sum() / own.sum())


def _mask(shape: tuple[int, ...], box: Sequence[float]) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(shape, bool)
    mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return mask


def _font(px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(plain_font(), px)
