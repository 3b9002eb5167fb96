"""Read lines put together to rows of text in reading order."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .boxes import Boxes
from .characters import Characters
from .order import reading_order
from .page import Row
from .recognise import Line, joined

LEAST_SURENESS = 0.5
"""Lines that are less sure are no text, as RapidOCR has it."""
INNER_HEIGHT = 0.75
"""Share of a box's height that its letters take: boxes have a margin."""


def assemble(lines: list[Line], alphabet: str) -> list[Row]:
    """Rows of text, in reading order, from the lines of a page.

    Lines of a page that was turned are ordered as one reads them.
    """
    lines = [line for line in lines if line.sureness >= LEAST_SURENESS]
    if not lines:
        return []
    boxes = joined([line.box for line in lines])
    quarters = _page_turn(boxes)
    texts = ["".join(alphabet[k - 1] for k in line.read.kind) for line in lines]
    return [
        _row([lines[i] for i in row], [texts[i] for i in row], alphabet, quarters)
        for row in reading_order(_upright(boxes, quarters), texts)
    ]


def _page_turn(boxes: Boxes) -> int:
    """Quarter turns clockwise by which most of the page's text is turned."""
    turns = np.round(boxes.angle / (np.pi / 2)).astype(int) % 4
    lengths = [float(boxes.size[turns == turn, 0].sum()) for turn in range(4)]
    return int(np.argmax(lengths))


def _upright(boxes: Boxes, quarters: int) -> Boxes:
    """The boxes as they lie once the page is turned back."""
    turn = -quarters * np.pi / 2
    cos, sin = np.cos(turn), np.sin(turn)
    centre = boxes.centre @ np.array([[cos, sin], [-sin, cos]], np.float32)
    angle = (boxes.angle + turn + np.pi) % (2 * np.pi) - np.pi
    return Boxes(centre.astype(np.float32), boxes.size, angle.astype(np.float32))


def _row(lines: list[Line], texts: list[str], alphabet: str, quarters: int) -> Row:
    """Pieces from left to right with a sure space between."""
    options, ratios, boxes, sure = [], [], [], []
    for line in lines:
        own = character_boxes(line)
        if boxes:
            options.append("")
            ratios.append(
                line.read.log_ratio.new_full((1, line.read.log_ratio.shape[1]), -torch.inf)
            )
            gap = _between(boxes[-1][-1], own[0])
            boxes.append(gap[None])
            sure.append(np.ones(1, np.float32))
        options += _options(line, alphabet)
        ratios.append(line.read.log_ratio)
        boxes.append(own)
        sure.append(line.read.probability)
    characters = Characters(" ".join(texts), tuple(options), torch.cat(ratios))
    return Row(characters, np.concatenate(boxes), np.concatenate(sure), quarters)


def _options(line: Line, alphabet: str) -> list[str]:
    """The other characters of each position; none where the character is an added space."""
    possible = torch.isfinite(line.read.log_ratio).tolist()
    return [
        "".join(alphabet[k - 1] for k, ok in zip(row, allowed) if ok)
        for row, allowed in zip(line.read.options, possible)
    ]


def character_boxes(line: Line) -> NDArray[np.float32]:
    """Left, top, right, bottom of each character of a line, px of the page, ``[n, 4]``."""
    length, height = line.box.size[0]
    angle = line.box.angle[0]
    along = np.stack([line.read.left, line.read.right], 1) / line.width - 0.5
    cos, sin = np.cos(angle), np.sin(angle)
    corners = []
    for side in (0, 1):
        for down in (-INNER_HEIGHT / 2, INNER_HEIGHT / 2):
            x = line.box.centre[0, 0] + along[:, side] * length * cos - down * height * sin
            y = line.box.centre[0, 1] + along[:, side] * length * sin + down * height * cos
            corners.append(np.stack([x, y], -1))
    points = np.stack(corners, 1)
    return np.concatenate([points.min(1), points.max(1)], 1).astype(np.float32)


def _between(left: NDArray, right: NDArray) -> NDArray[np.float32]:
    """The box of the space between two characters: begins where the first ends."""
    top, bottom = min(left[1], right[1]), max(left[3], right[3])
    return np.array([left[2], top, max(left[2], right[0]), bottom], np.float32)
