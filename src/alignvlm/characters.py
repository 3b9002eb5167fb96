"""From what a recogniser sees in every row of a page to lines of characters, each once.

The recogniser looks at overlapping windows of rows, so it reads most lines two to four times, the
nearest window best. Each character it emits also says where its line is; the emissions that form
the surest reading of a line are kept. What is chosen is discrete, what is passed on is not: the
soft characters keep their gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAP_EMS = 2.5
"""A wider gap ends a run of characters."""
SAME_LINE_EMS = 0.45
"""Readings whose lines are nearer than this are of one line."""
EVEN = 0.4
"""Probability at which a character speaks neither for nor against a reading of its line."""
BEST_PX, BEST_FACTOR, GOOD_FIT = 45.0, 1.6, 0.85
"""Size of text that the recogniser reads best, the factor at which it speaks against it, and the
:func:`fitness` of a size that needs no better one."""
SEEN, MARGIN_EMS = 0.3, 2.5
"""Probability above which a character's size counts, and what is read around a line that is read
again, above and below its middle."""
LEAST_MEAN = 0.5
"""A run of characters whose mean probability is lower is no text."""


class Emissions(NamedTuple):
    """Characters read in each row of windows; those of a line several times.

    Attributes:
        row, column: int64 ``[n]``, sorted by row and then column.
        kind: index into the alphabet, int64 ``[n]``.
        probability: of that character, float32 ``[n]``.
    """

    row: Tensor
    column: Tensor
    kind: Tensor
    probability: Tensor


def emissions(probabilities: Tensor) -> Emissions:
    """Greedy CTC over each row: columns that agree are one character, at the surest of them.

    Args:
        probabilities: ``[rows, columns, 1 + alphabet]``, the first is CTC's blank.
    """
    rows, columns, _ = probabilities.shape
    best, kind = probabilities.detach().max(-1)
    fresh = torch.ones_like(kind, dtype=torch.bool)
    fresh[:, 1:] = kind[:, 1:] != kind[:, :-1]
    group = fresh.flatten().cumsum(0) - 1
    count = int(group[-1]) + 1 if group.numel() else 0
    top = best.new_zeros(count).scatter_reduce(0, group, best.flatten(), "amax")
    surest = best.flatten() == top[group]
    place = torch.arange(rows * columns, device=best.device)
    first = place.new_full((count,), rows * columns)
    first = first.scatter_reduce(0, group[surest], place[surest], "amin")
    first = first[kind.flatten()[first] > 0]
    flat = kind.flatten()[first] - 1
    return Emissions(first // columns, first % columns, flat, best.flatten()[first])


class Placed(NamedTuple):
    """Where each emission's character stands, px of the page; float32 ``[n]``.

    Attributes:
        x: left edge.
        y: middle of its line's small letters.
        em: size of the text.
        right: right edge.
        seen: size of the text as the recogniser saw it, px of the enlarged page.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    em: NDArray[np.float32]
    right: NDArray[np.float32]
    seen: NDArray[np.float32]


def join(parts: list[tuple[Emissions, Placed]]) -> tuple[Emissions, Placed]:
    """Readings of one page at several sizes as one: their rows follow one another."""
    first, rows = 0, []
    for found, _ in parts:
        rows.append(found.row + first)
        first += int(found.row.max()) + 1 if len(found.row) else 0
    found = Emissions(torch.cat(rows), *map(torch.cat, list(zip(*(p[0] for p in parts)))[1:]))
    return found, Placed(*map(np.concatenate, zip(*(p[1] for p in parts))))


class Line(NamedTuple):
    """A run of characters of one line.

    Attributes:
        members: indices of its emissions, left to right.
        y: middle of the line, px.
    """

    members: NDArray[np.int64]
    y: float


def find_lines(found: Emissions, placed: Placed, space: int) -> list[Line]:
    """The readings to keep: every piece of every line once.

    Args:
        space: the alphabet's index of the space.
    """
    row, kind = found.row.cpu().numpy(), found.kind.cpu().numpy()
    sure = found.probability.float().cpu().numpy()
    visible = np.flatnonzero(kind != space)
    if not len(visible):
        return []
    runs = _runs(row[visible], placed.x[visible], placed.y[visible], placed.em[visible])
    readings = [visible[run] for run in runs]
    # characters that are surely read count for a reading, others against it
    fit = fitness(placed.seen)
    readings.sort(key=lambda members: -float((fit[members] * (sure[members] - EVEN)).sum()))
    taken: list[tuple[float, float, float, float]] = []  # left, right, y, em
    lines: list[Line] = []
    for members in readings:
        for piece in _uncovered(members, placed, taken):
            if sure[piece].mean() < LEAST_MEAN:
                continue
            y, em = float(np.median(placed.y[piece])), float(np.median(placed.em[piece]))
            left, right = float(placed.x[piece[0]]), float(placed.x[piece[-1]]) + 0.4 * em
            taken.append((left, right, y, em))
            lines.append(Line(_with_spaces(piece, row, kind, placed.x, space), y))
    return lines


def fitness(seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """How well text of that size is read: 1 at the best size, a third at twice or half of it."""
    return np.exp(-0.5 * (np.log(seen / BEST_PX) / np.log(BEST_FACTOR)) ** 2)


def rereadings(
    found: Emissions, placed: Placed, scales: Sequence[float]
) -> list[list[tuple[float, float]]]:
    """What is better read at a size other than the first, at which this was read.

    Text too small or too large to be read still shows its size.

    Returns:
        For each further size, tops and bottoms in px of the page.
    """
    sure = found.probability.float().cpu().numpy() > SEEN
    row = found.row.cpu().numpy()[sure]
    y, em, seen = placed.y[sure], placed.em[sure], placed.seen[sure]
    sizes = np.array(scales)
    lines = []  # a row's middle, what is read around it, and how well at each size
    for number in np.unique(row):
        here = row == number
        reach = MARGIN_EMS * np.median(em[here])
        fit = fitness(np.median(seen[here]) / scales[0] * sizes)
        lines.append(((y[here].min() - reach, y[here].max() + reach), np.median(y[here]), fit))
    wanted: list[list[tuple[float, float]]] = [[] for _ in scales]
    for best in np.argsort(-sizes):
        others = [
            (other, span) for other, spans in enumerate(wanted[1:], start=1) for span in spans
        ]
        spans = [
            span
            for span, middle, fit in lines
            if fit.argmax() == best
            # a larger one that is read around it anyway may do
            and not any(
                fit[other] >= GOOD_FIT and top <= middle <= bottom
                for other, (top, bottom) in others
            )
        ]
        wanted[best] = merged(spans)
    return wanted[1:]


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans that touch as one."""
    result: list[tuple[float, float]] = []
    for top, bottom in sorted(spans):
        if result and top <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], bottom))
        else:
            result.append((top, bottom))
    return result


def _runs(
    row: NDArray[np.int64], x: NDArray[np.float32], y: NDArray[np.float32], em: NDArray[np.float32]
) -> list[NDArray[np.int64]]:
    """Neighbours in a row that may be of one line."""
    apart = (row[1:] != row[:-1]) | (x[1:] - x[:-1] > GAP_EMS * em[1:])
    apart |= np.abs(y[1:] - y[:-1]) > SAME_LINE_EMS * np.minimum(em[1:], em[:-1])
    return np.split(np.arange(len(row)), np.flatnonzero(apart) + 1)


def _uncovered(
    members: NDArray[np.int64], placed: Placed, taken: list[tuple[float, float, float, float]]
) -> list[NDArray[np.int64]]:
    """The pieces of a run that no better reading covers."""
    if taken:
        left, right, y, em = np.array(taken).T
        own_em = placed.em[members][:, None]
        centre = placed.x[members][:, None] + 0.25 * own_em
        near = np.abs(placed.y[members][:, None] - y) < SAME_LINE_EMS * 1.6 * np.maximum(own_em, em)
        covered = (near & (centre >= left - 0.1 * em) & (centre <= right + 0.1 * em)).any(1)
    else:
        covered = np.zeros(len(members), bool)
    edges = np.flatnonzero(np.diff(covered)) + 1
    return [piece for piece in np.split(members, edges) if not covered[members == piece[0]].any()]


def _with_spaces(
    piece: NDArray[np.int64],
    row: NDArray[np.int64],
    kind: NDArray[np.int64],
    x: NDArray[np.float32],
    space: int,
) -> NDArray[np.int64]:
    """The emissions of a piece and the spaces read between them, one at a time."""
    inside = np.arange(piece[0], piece[-1] + 1)
    inside = inside[(row[inside] == row[piece[0]])]
    chosen = np.isin(inside, piece)
    spaces = kind[inside] == space
    spaces[1:] &= ~spaces[:-1]
    return inside[chosen | spaces]
