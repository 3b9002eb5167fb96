"""From a recogniser's logits to the characters of a line, each with its place and its doubt.

Greedy CTC (Graves et al., 2006): of neighbouring columns that agree the surest one speaks. Spaces
come from two witnesses: the recogniser's own space, and wide gaps in the ink where it read none.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .crops import HEIGHT, STEP

OPTIONS = 4
"""Other characters that are kept for each position."""
LEAST = math.log(1e-9)
"""Log-probability below which one character is as unlikely as another."""
INK = 0.35
"""Share of a line's strongest contrast above which a column of pixels has ink."""
SPACE_PX, SPACE_RATIO = 12.0, 3.0
"""A gap is a space if it is that wide, px of the cut-out line, and that many times as wide as the
line's usual gap."""


class Decoded(NamedTuple):
    """The characters of one line, left to right.

    Attributes:
        kind: int64 ``[n]``, index into the alphabet (0 is CTC's blank and does not occur).
        options: int64 ``[n, k]``, other characters, best first.
        log_ratio: float ``[n, k]``, log-probability of each option minus the character's own;
            gradients flow to the recogniser.
        probability: float32 ``[n]``, of each character.
        left, right: float32 ``[n]``, edges of each character along the line, px of the cut-out.
    """

    kind: NDArray[np.int64]
    options: NDArray[np.int64]
    log_ratio: Float[Tensor, "n k"]
    probability: NDArray[np.float32]
    left: NDArray[np.float32]
    right: NDArray[np.float32]


def decode(
    logits: Float[Tensor, "lines columns alphabet"],
    crops: Float[Tensor, "lines 3 48 width"],
    widths: NDArray[np.int64],
    space: int,
    digits: Container[int] = (),
    points: Container[int] = (),
) -> list[Decoded]:
    """Characters of some lines.

    Args:
        logits: of each column's character, the first of which is CTC's blank.
        crops: the cut-out lines, for the gaps in their ink.
        widths: of each line within the batch, px.
        space: the alphabet's index of the space.
        digits, points: indices of digits, and of the marks that stand between them in a number,
            where the ink has a gap that is no space.
    """
    kind = logits.detach().argmax(-1)
    best = _probability(logits.detach(), kind)
    best, kind = best.float().cpu().numpy(), kind.cpu().numpy()
    chosen = [_peaks(b[: w // STEP], k[: w // STEP]) for b, k, w in zip(best, kind, widths)]
    line = np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])
    column = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    index = (
        torch.from_numpy(line).to(logits.device),
        torch.from_numpy(column).to(logits.device),
    )
    log_ratio, options = _options(logits[index], kind[line, column])
    ink = _ink(crops.detach())
    result, start = [], 0
    for number, columns in enumerate(chosen):
        here = slice(start, start + len(columns))
        start = here.stop
        line_ink = ink[number, : widths[number]]
        left, right = _edges(columns, line_ink, kind[number, columns] == space)
        read = Decoded(
            kind[number, columns],
            options[here],
            log_ratio[here],
            best[number, columns],
            left,
            right,
        )
        result.append(_with_gaps(read, line_ink, space, digits, points))
    return result


def _probability(logits: Tensor, kind: Tensor) -> Tensor:
    """Probability of each column's likeliest character, 0 for CTC's blank; a softmax over all
    columns would take several times as long."""
    said = kind != 0
    rows = logits[said]
    rows = rows if rows.dtype == torch.float64 else rows.float()
    result = rows.new_zeros(kind.shape)
    result[said] = (rows.amax(-1) - rows.logsumexp(-1)).exp()
    return result


def _peaks(best: NDArray, kind: NDArray) -> NDArray[np.int64]:
    """Columns that emit a character: of each run of one character the surest."""
    if not len(kind):
        return np.zeros(0, np.int64)
    edges = np.flatnonzero(np.diff(kind)) + 1
    starts, ends = np.append(0, edges), np.append(edges, len(kind))
    return np.array(
        [s + int(best[s:e].argmax()) for s, e in zip(starts, ends) if kind[s] != 0], np.int64
    )


def _options(picked: Tensor, kinds: NDArray) -> tuple[Tensor, NDArray[np.int64]]:
    """Log-ratios and alphabet indices of the likeliest other characters; CTC's blank is none."""
    if not len(kinds):
        return picked.new_zeros(0, OPTIONS), np.zeros((0, OPTIONS), np.int64)
    own = torch.from_numpy(kinds).to(picked.device)[:, None]
    # the best two may be the character itself and the blank; what remains keeps its order
    picked = picked if picked.dtype == torch.float64 else picked.float()
    best = picked.detach().topk(OPTIONS + 2, dim=1).indices
    refused = (best == own) | (best == 0)
    options = best.gather(1, refused.long().argsort(dim=1, stable=True))[:, :OPTIONS]
    total = picked.logsumexp(1, keepdim=True)
    ratio = (picked.gather(1, options) - total).clamp_min(LEAST) - (picked.gather(1, own) - total)
    return ratio, options.cpu().numpy()


def _ink(crops: Tensor) -> NDArray[np.bool_]:
    """Which columns of pixels have ink, ``[lines, width]``."""
    grey = crops.float().mean(1)[:, 4 : HEIGHT - 4]
    contrast = (grey.amax(1) - grey.amin(1)).cpu().numpy()
    strong = np.quantile(contrast, 0.9, axis=1, keepdims=True)
    return contrast > INK * np.maximum(strong, 0.05)


def _edges(
    columns: NDArray, ink: NDArray, blank: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Left and right edges of characters: between neighbours, drawn in to the ink.

    At the line's start and after a space (``blank``) a character begins where its ink does: a wide
    letter is read right of its middle, and would lose its first stroke to the space.
    """
    if not len(columns):
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    middle = (columns + 0.5) * STEP
    between = (middle[1:] + middle[:-1]) / 2
    pitch = float(np.median(np.diff(middle))) if len(middle) > 1 else HEIGHT * 0.5
    left = np.append(max(0.0, middle[0] - pitch), between)
    right = np.append(between, min(float(len(ink)), middle[-1] + pitch))
    for i in range(len(columns)):
        own = np.flatnonzero(ink[int(left[i]) : max(int(right[i]), int(left[i]) + 1)])
        if len(own):
            left[i], right[i] = int(left[i]) + own[0], int(left[i]) + own[-1] + 1
        if not blank[i] and (i == 0 or blank[i - 1]):
            least = 0 if i == 0 else int(middle[i - 1])
            while left[i] > least and ink[int(left[i]) - 1]:
                left[i] -= 1
    inner = np.flatnonzero(blank[1:-1]) + 1
    left[inner], right[inner] = right[inner - 1], np.maximum(left[inner + 1], right[inner - 1])
    return left.astype(np.float32), right.astype(np.float32)


def _with_gaps(
    read: Decoded, ink: NDArray, space: int, digits: Container[int], points: Container[int]
) -> Decoded:
    """Spaces put where the ink has a gap and none was read; none at the ends, none doubled."""
    kept = np.flatnonzero(_single_spaces(read.kind, space))
    kinds = read.kind[kept]
    solid = kinds != space
    middles = (read.left[kept] + read.right[kept]) / 2
    gaps = np.zeros(max(len(kept) - 1, 0), np.float32)
    for i in np.flatnonzero(solid[:-1] & solid[1:]):
        gaps[i] = _longest_gap(ink[int(middles[i]) : int(middles[i + 1]) + 1])
    usual = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0
    missing = gaps > max(SPACE_PX, SPACE_RATIO * usual)
    for i in range(1, len(kinds) - 1):  # 19.77
        if kinds[i] in points and kinds[i - 1] in digits and kinds[i + 1] in digits:
            missing[i - 1 : i + 1] = False
    order, blanks = [], []
    for i, index in enumerate(kept):
        order.append(int(index))
        if i < len(gaps) and missing[i]:
            order.append(-1)
            blanks.append((read.right[index], read.left[kept[i + 1]]))
    return _arranged(read, np.array(order, np.int64), blanks, space)


def _single_spaces(kinds: NDArray, space: int) -> NDArray[np.bool_]:
    """Which characters stay: spaces between words, one each."""
    solid = np.flatnonzero(kinds != space)
    keep = np.zeros(len(kinds), bool)
    if len(solid):
        inside = slice(solid[0], solid[-1] + 1)
        keep[inside] = True
        keep[1:] &= ~((kinds[1:] == space) & (kinds[:-1] == space))
    return keep


def _longest_gap(ink: NDArray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[True], ink, [True]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _arranged(
    read: Decoded, order: NDArray, blanks: list[tuple[np.float32, np.float32]], space: int
) -> Decoded:
    """The characters in that order; -1 is a sure space between the given edges."""
    new = order < 0
    index = np.where(new, 0, order)
    kind = np.where(new, space, read.kind[index])
    sure = torch.from_numpy(new).to(read.log_ratio.device)[:, None]
    left, right = read.left[index], read.right[index]
    if blanks:
        left[new], right[new] = np.array(blanks, np.float32).T
    return Decoded(
        kind,
        read.options[index],
        read.log_ratio[torch.from_numpy(index).to(sure.device)].masked_fill(sure, -torch.inf),
        np.where(new, np.float32(1), read.probability[index]),
        left,
        right,
    )
