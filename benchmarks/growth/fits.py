"""The shape of a curve: flat, linear, or linear with a quadratic part.

A shape is only named where its curve comes near every measured point. The simplest one that does
is taken; a curve's coefficients are never negative, since no work costs less than none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

NEAR = {"flat": 0.08, "linear": 0.15, "quadratic": 0.15}
"""Largest relative distance of a point from the curve at which its shape is named."""
SHAPES: dict[str, tuple[int, ...]] = {"flat": (0,), "linear": (0, 1), "quadratic": (0, 1, 2)}
"""Powers of x in each shape, the simplest shape first."""


@dataclass(frozen=True)
class Fit:
    """A curve through measured points.

    Attributes:
        shape: a name of :data:`SHAPES`, or ``none`` where no curve comes near.
        coefficients: of 1, x and x².
        off: largest relative distance of a point from the curve.
        points: how many it was fitted to.
    """

    shape: str
    coefficients: tuple[float, float, float]
    off: float
    points: int

    def at(self, x: float) -> float:
        """The curve's height."""
        return float(sum(c * x**power for power, c in enumerate(self.coefficients)))


def fit(xs: Sequence[float], ys: Sequence[float]) -> Fit:
    """The simplest curve that comes as near as :data:`NEAR` says to all points.

    A curve needs more points than coefficients. If none comes near enough, the nearest one is
    given under the name ``none``.

    Raises:
        ValueError: fewer than two points, or a y that is not above 0.
    """
    if len(xs) < 2 or len(xs) != len(ys) or min(ys) <= 0:
        raise ValueError(f"a curve needs two points above 0 or more, not {list(zip(xs, ys))}")
    tried = [
        Fit(shape, *_nearest(xs, ys, powers), len(xs))
        for shape, powers in SHAPES.items()
        if len(powers) < len(xs)
    ]
    for curve in tried:
        if curve.off <= NEAR[curve.shape]:
            return curve
    best = min(tried, key=lambda curve: curve.off)
    return Fit("none", best.coefficients, best.off, best.points)


def _nearest(
    xs: Sequence[float], ys: Sequence[float], powers: Sequence[int]
) -> tuple[tuple[float, float, float], float]:
    """Coefficients with the least squared relative distance, none negative, and the largest
    distance."""
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    best: tuple[float, tuple[float, float, float], float] | None = None
    for count in range(1, len(powers) + 1):
        for chosen in combinations(powers, count):
            columns = np.stack([x**power for power in chosen], axis=1) / y[:, None]
            found = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
            if found.min() < 0:
                continue
            whole = [0.0, 0.0, 0.0]
            for power, value in zip(chosen, found, strict=True):
                whole[power] = float(value)
            apart = np.abs(columns @ found - 1)
            squares = float((apart**2).sum())
            if best is None or squares < best[0] * (1 - 1e-9):
                best = squares, (whole[0], whole[1], whole[2]), float(apart.max())
    assert best is not None  # a constant is never negative
    return best[1], best[2]


def distance(curve: Fit) -> str:
    """How far points lie from the curve."""
    return f"off by {f'at most {100 * curve.off:.0f}' if curve.off >= 0.005 else 'less than 1'} %"


def words(curve: Fit, axis: str, show: Callable[[float], str]) -> str:
    """How a quantity grows along an axis, as the end of a sentence: ``grows linearly with pages:
    ...``. ``show`` writes a value with its unit."""
    constant, slope, square = curve.coefficients
    sure = f"(fit {distance(curve)})"
    if curve.shape == "flat":
        return f"is flat in {axis}: {show(constant)} {sure}"
    if curve.shape == "linear":
        start = f"{show(constant)} and " if constant else ""
        return f"grows linearly with {axis}: {start}{show(slope)} for each {sure}"
    if curve.shape == "quadratic":
        parts = [(constant, ""), (slope, " x"), (square, " x²")]
        terms = " + ".join(f"{show(value)}{unit}" for value, unit in parts if value)
        return f"has a part that grows quadratically with {axis}, x: {terms} {sure}"
    return f"follows none of the three shapes over these {axis} (nearest {distance(curve)})"
