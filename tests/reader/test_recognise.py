"""Each line the right way up, with a network that reads lines the right way up alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reader.test_boxes import boxes
from torch import Tensor, nn

from alignvlm.reader.boxes import Boxes
from alignvlm.reader.crops import STEP, Page, widths
from alignvlm.reader.recognise import LONE, Line, Recogniser, joined

ALPHABET = "abcdefgh "


class UprightReader(nn.Module):
    """A line's letter is the brightness of its third channel; it is sure of it only where the first
    channel grows darker downwards (the line is not turned)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.lines_read = 0

    def forward(self, crops: Tensor) -> Tensor:
        self.lines_read += len(crops)
        lines, _, _, width = crops.shape
        own = crops[..., : 5 * STEP]  # every line is at least that wide
        upright = own[:, 0, :12].mean((1, 2)) - own[:, 0, -12:].mean((1, 2)) > 0.6
        letter = ((own[:, 2].mean((1, 2)) + 1) * 4).long().clamp(0, 7) + 1
        sure = torch.where(upright, 0.98, 0.3)
        p = (1 - sure)[:, None, None].expand(lines, width // STEP, len(ALPHABET) + 1)
        p = (p / (len(ALPHABET) - 1)).clone()
        p[:, :, 0] = 0.9  # blank ...
        p[:, 1, 0] = 0.0  # ... but for one column
        p[torch.arange(lines), 1, letter] = sure
        return p.clamp_min(1e-30).log() * self.scale


def painted(lines: list[tuple[str, float, float, float, float]], size=(400, 500)) -> Tensor:
    """A page with level lines ``(letter, left, top, length, height)``: light above, dark below."""
    page = torch.ones(3, *size)
    for letter, left, top, length, height in lines:
        x, y, w, h = (int(v) for v in (left, top, length, height))
        page[0, y : y + h, x : x + w] = torch.linspace(1, -1, h)[:, None]
        page[2, y : y + h, x : x + w] = (ALPHABET.index(letter) + 0.5) / 4 - 1
    return page


LINES = [(letter, 40, 30 + 40 * i, 150 + 20 * i, 24) for i, letter in enumerate("abcdefgh")]
STAMP = ("d", 400, 200, 60, 40)


def around(lines: list[tuple[str, float, float, float, float]]) -> Boxes:
    return boxes(*[(x + w / 2, y + h / 2, w, h, 0) for _, x, y, w, h in lines])


def read(page: Tensor, box: Boxes) -> tuple[list[Line], int]:
    network = UprightReader()
    with torch.no_grad():
        lines = Recogniser(network, ALPHABET)(Page(page), box)
    return lines, network.lines_read


def text(lines: list[Line]) -> str:
    return "".join("".join(ALPHABET[k - 1] for k in line.read.kind) for line in lines)


def degrees(lines: list[Line]) -> list[float]:
    return [round(float(np.rad2deg(line.box.angle[0])) % 360) for line in lines]


def turned_page(page: Tensor, box: Boxes, quarters: int) -> tuple[Tensor, Boxes]:
    """A page turned clockwise, and its boxes there as they are found: level or downwards."""
    high, wide = page.shape[1:]
    x, y = box.centre.T
    places = {0: (x, y), 1: (high - y, x), 2: (wide - x, high - y), 3: (y, wide - x)}[quarters]
    angle = np.full(len(box), np.pi / 2 * (quarters % 2), np.float32)
    return torch.rot90(page, -quarters, (1, 2)), Boxes(np.stack(places, 1), box.size, angle)


def test_an_upright_page_is_read_once():
    lines, count = read(painted(LINES), around(LINES))
    assert text(lines) == "abcdefgh"
    assert degrees(lines) == [0] * 8
    assert count == 8
    box = around(LINES)
    for index, line in enumerate(lines):
        np.testing.assert_array_equal(line.box.centre[0], box.centre[index])
        assert line.width == widths(box)[index]
        assert line.sureness == pytest.approx(0.98)


@pytest.mark.parametrize(("quarters", "angle"), [(1, 90), (2, 180), (3, 270)])
def test_a_turned_page_is_read_the_right_way_up(quarters, angle):
    page, box = turned_page(painted(LINES), around(LINES), quarters)
    lines, count = read(page, box)
    assert text(lines) == "abcdefgh"
    assert degrees(lines) == [angle] * 8
    assert count == (8 if quarters == 1 else 8 + 6 + 8)


def test_a_long_page_on_its_head_is_turned_as_a_whole():
    """More lines than are tried one by one."""
    many = [("abcdefgh"[i % 8], 40, 10 + 12 * i, 100 + i, 9) for i in range(LONE + 6)]
    page, box = turned_page(painted(many), around(many), 2)
    lines, _ = read(page, box)
    assert text(lines) == "".join(letter for letter, *_ in many)
    assert degrees(lines) == [180] * len(many)


def test_one_line_on_its_head_among_upright_ones():
    page, box = painted(LINES), around(LINES)
    _, x, y, w, h = LINES[5]
    part = page[:, y : y + h, x : x + w]
    page[:, y : y + h, x : x + w] = torch.rot90(part.clone(), 2, (1, 2))
    lines, count = read(page, box)
    assert text(lines) == "abcdefgh"
    assert degrees(lines) == [0] * 5 + [180] + [0] * 2
    assert count == 9


@pytest.mark.parametrize("quarters", [1, 3])
def test_a_stamp_that_stands_on_its_side(quarters):
    """A box hardly wider than high: which way it is read does not show in its shape."""
    page, box = painted(LINES), around([*LINES, STAMP])
    stamp = torch.rot90(painted([("d", 0, 0, 40, 60)], (60, 40)), -quarters, (1, 2))
    _, x, y, w, h = STAMP
    page[:, y : y + h, x : x + w] = stamp
    lines, _ = read(page, box)
    assert text(lines) == "abcdefghd"
    assert degrees(lines) == [0] * 8 + [90 * quarters]
    assert lines[-1].box.size[0].tolist() == [40, 60]


def test_long_lines_are_not_tried_on_their_side():
    page = painted(LINES)
    page[0] = 0.0  # nothing is sure any more
    _, count = read(page, around(LINES))
    # as they lie, a sample turned, all turned
    assert count == 8 + 6 + 8


def test_no_more_than_some_doubtful_lines_are_tried_alone():
    many = [("b", 10, 10 + 5 * i, 60, 4) for i in range(LONE + 6)]
    page = painted([("c", 100, 10, 380, 300)])
    box = joined([around([("c", 100, 10, 3800, 300)]), around(many)])
    page[0, :, :90] = 0
    lines, count = read(page, box)
    assert len(lines) == len(box)
    assert count == len(box) + LONE


def test_readings_of_lines_keep_their_gradient():
    page = painted(LINES).requires_grad_()
    network = UprightReader()
    (line,) = Recogniser(network, ALPHABET)(Page(page), around(LINES[:1]))
    (gradient,) = torch.autograd.grad(line.read.log_ratio.sum(), network.scale)
    assert gradient.isfinite()


def test_a_line_that_says_nothing_is_not_sure():
    class Silent(UprightReader):
        def forward(self, crops: Tensor) -> Tensor:
            p = torch.zeros(len(crops), crops.shape[3] // STEP, len(ALPHABET) + 1)
            p[..., 0] = 1
            return p.log()

    lines = Recogniser(Silent(), ALPHABET)(Page(painted(LINES)), around(LINES))
    assert [line.sureness for line in lines] == [0] * 8
    assert text(lines) == ""
