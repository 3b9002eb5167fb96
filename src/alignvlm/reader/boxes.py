"""From a detector's map of "text is here" to lines of text as rotated rectangles.

The detector (DB, arXiv 1911.08947) is trained on shrunk text regions: regions above a threshold
are traced, each becomes the smallest rectangle around it, and is grown back by what shrinking took.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.3
"""Probability above which a pixel of the detector's map is text."""
LEAST_SCORE = 0.5
"""A region whose mean probability is lower is no text."""
GROWTH = 1.6
"""A region of area A and perimeter P grows by ``GROWTH * A / P`` on each side."""
LEAST_SIDE = 3.0
"""Smaller regions are noise, px of the map."""
TALL = 1.5
"""A box that many times as high as wide holds a line turned by 90 degrees."""
SLANT_ASPECT = 3.0
"""Shorter boxes take their neighbours' slant: a few letters do not show one."""


@dataclass(frozen=True)
class Boxes:
    """Lines of text on a page, px of the page, y down.

    Attributes:
        centre: float32 ``[n, 2]``, x and y.
        size: float32 ``[n, 2]``, length along the line and height across it.
        angle: float32 ``[n]``, direction of reading, radians clockwise from the x axis.
    """

    centre: NDArray[np.float32]
    size: NDArray[np.float32]
    angle: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.angle)

    def take(self, index: NDArray) -> Boxes:
        """Some of the boxes, by index or mask."""
        return Boxes(self.centre[index], self.size[index], self.angle[index])

    def turned(self, quarters: NDArray | int) -> Boxes:
        """The same rectangles read in a direction that many quarter turns further, clockwise."""
        quarters = np.broadcast_to(np.asarray(quarters), self.angle.shape)
        swapped = (quarters % 2 == 1)[:, None]
        size = np.where(swapped, self.size[:, ::-1], self.size)
        return Boxes(self.centre, size, (self.angle + quarters * (np.pi / 2)).astype(np.float32))

    def corners(self) -> NDArray[np.float32]:
        """``[n, 4, 2]``: top left, top right, bottom right, bottom left as one reads."""
        along = np.stack([np.cos(self.angle), np.sin(self.angle)], -1) * self.size[:, :1] / 2
        down = np.stack([-np.sin(self.angle), np.cos(self.angle)], -1) * self.size[:, 1:] / 2
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        corners = [self.centre + a * along + d * down for a, d in signs]
        return np.stack(corners, 1, dtype=np.float32)


def nothing() -> Boxes:
    """No boxes."""
    empty = np.zeros((0, 2), np.float32)
    return Boxes(empty, empty, np.zeros(0, np.float32))


def find_boxes(probability: NDArray[np.float32], scale: tuple[float, float]) -> Boxes:
    """The lines of text that a detector's map shows.

    Boxes lie along the direction nearest to the x axis, or, where they are much higher than wide,
    along the y axis downwards.

    Args:
        probability: ``[height, width]``, of text.
        scale: px of the page for each px of the map, in x and y.
    """
    mask = (probability > THRESHOLD).astype(np.uint8)
    # joins the pieces of letters that a threshold tears apart
    mask = cv2.dilate(mask, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for contour in contours:
        rectangle = cv2.minAreaRect(contour)
        if min(rectangle[1]) >= LEAST_SIDE and _score(probability, rectangle) >= LEAST_SCORE:
            found.append((contour[:, 0].astype(np.float32), _upright(rectangle)))
    if not found:
        return nothing()
    slant = _common_slant([rectangle for _, rectangle in found])
    rows = []
    for points, rectangle in found:
        length, height = rectangle[2], rectangle[3]
        if max(length, height) < SLANT_ASPECT * min(length, height):
            rectangle = _around(points, slant)
        rows.append(rectangle)
    x, y, length, height, angle = np.array(rows, np.float32).T
    # contours run through the middles of pixels
    growth = GROWTH * length * height / (2 * (length + height)) + 0.5
    boxes = Boxes(
        # joining moved regions by half a pixel, to where pixels' middles are
        np.stack([x, y], -1) * np.array(scale, np.float32),
        np.stack([length + 2 * growth, height + 2 * growth], -1) * np.float32(np.mean(scale)),
        angle,
    )
    tall = boxes.size[:, 1] > TALL * boxes.size[:, 0]
    return boxes.turned(tall.astype(np.int64))


Rectangle = tuple[float, float, float, float, float]
"""x, y, length, height, angle in radians within 45 degrees of the x axis."""


def _upright(rectangle: object) -> Rectangle:
    (x, y), (length, height), degrees = rectangle  # type: ignore[misc]
    while degrees > 45:
        length, height, degrees = height, length, degrees - 90
    while degrees <= -45:
        length, height, degrees = height, length, degrees + 90
    return x, y, length, height, float(np.deg2rad(degrees))


def _common_slant(rectangles: list[Rectangle]) -> float:
    """Median slant of the boxes, long ones counting more; 0 where none is long."""
    sides = np.array([(max(r[2], r[3]), min(r[2], r[3]), r[4]) for r in rectangles])
    long = sides[:, 0] >= SLANT_ASPECT * sides[:, 1]
    if not long.any():
        return 0.0
    return weighted_median(sides[long, 2], sides[long, 0])


def weighted_median(values: NDArray, weights: NDArray) -> float:
    """The value at which half of the weight is reached."""
    order = np.argsort(values)
    half = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return float(values[order[min(half, len(order) - 1)]])


def _around(points: NDArray[np.float32], slant: float) -> Rectangle:
    """The smallest rectangle of that slant around some points."""
    cos, sin = np.cos(slant), np.sin(slant)
    turned = points @ np.array([[cos, -sin], [sin, cos]], np.float32)
    low, high = turned.min(0), turned.max(0)
    (u, v), (length, height) = (low + high) / 2, high - low
    x, y = u * cos - v * sin, u * sin + v * cos
    return float(x), float(y), float(length), float(height), slant


def _score(probability: NDArray[np.float32], rectangle: object) -> float:
    """Mean probability inside a rectangle."""
    corners = cv2.boxPoints(rectangle)  # type: ignore[call-overload]
    height, width = probability.shape
    low = np.clip(np.floor(corners.min(0)).astype(int), 0, (width - 1, height - 1))
    high = np.clip(np.ceil(corners.max(0)).astype(int), 0, (width - 1, height - 1))
    inside = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), np.uint8)
    cv2.fillPoly(inside, [(corners - low).astype(np.int32)], (1,))
    part = probability[low[1] : high[1] + 1, low[0] : high[0] + 1]
    return float(cv2.mean(part, inside)[0])
