"""Lines of a page, cut out straight: differentiable sampling of rotated rectangles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .boxes import Boxes

HEIGHT = 48
"""Height of a cut-out line, px: what the recogniser was trained on."""
STEP = 8
"""Width of a column of the recogniser, px of the cut-out line."""
LEAST_WIDTH, MOST_WIDTH = 5 * STEP, 400 * STEP
"""Of a cut-out line, px. A line so long that it would be wider is squeezed."""
BATCH_COLUMNS = 400
"""Columns that are recognised at once: their logits over all characters take 30 MB."""
HALVE = 1.8
"""Lines this many times as high as the cut-out are taken from the page at half its size."""


def widths(boxes: Boxes) -> NDArray[np.int64]:
    """Width of each cut-out line, px, a whole number of columns; ``[n]``."""
    exact = boxes.size[:, 0] * (HEIGHT / np.maximum(boxes.size[:, 1], 1e-6))
    columns = np.ceil(np.clip(exact, LEAST_WIDTH, MOST_WIDTH) / STEP)
    return (columns * STEP).astype(np.int64)


def batches(boxes: Boxes) -> Iterator[NDArray[np.int64]]:
    """Indices of lines that are cut out and recognised together: of like widths, widest last."""
    width = widths(boxes)
    chosen: list[int] = []
    for index in np.argsort(width, kind="stable"):
        columns = width[index] // STEP * (len(chosen) + 1)
        wider = chosen and width[index] > 1.25 * width[chosen[0]] + 4 * STEP
        if chosen and (columns > BATCH_COLUMNS or wider):
            yield np.array(chosen)
            chosen = []
        chosen.append(int(index))
    if chosen:
        yield np.array(chosen)


class Page:
    """A page of pixels, and its halves, quarters, ... made when they are asked for.

    Args:
        pixels: float ``[3, height, width]``.
    """

    def __init__(self, pixels: Float[Tensor, "3 height width"]) -> None:
        self.sizes = [pixels[None]]

    def at(self, level: int) -> Float[Tensor, "1 3 h w"]:
        """The page halved ``level`` times, each pixel the mean of four."""
        while len(self.sizes) <= level:
            last = self.sizes[-1]
            odd = (0, last.shape[3] % 2, 0, last.shape[2] % 2)
            self.sizes.append(F.avg_pool2d(F.pad(last, odd, mode="replicate"), 2))
        return self.sizes[level]

    def cut(self, boxes: Boxes) -> Float[Tensor, "n 3 48 width"]:
        """Cut lines out, straightened and scaled to 48 px; zeros (grey) right of shorter ones.

        Gradients flow to the pixels.
        """
        width = widths(boxes)
        broad = int(width.max())
        scale = boxes.size[:, 1] / HEIGHT
        levels = np.maximum(np.floor(np.log2(np.maximum(scale / HALVE, 1e-6))) + 1, 0).astype(int)
        pixels = self.sizes[0]
        result = pixels.new_zeros(len(boxes), 3, HEIGHT, broad)
        for level in np.unique(levels):
            own = np.flatnonzero(levels == level)
            grid = self._grid(boxes.take(own), width[own], broad, int(level))
            source = self.at(int(level))
            # one tall image: grid_sample wants one page per batch entry, and there is one page
            tall = F.grid_sample(
                source, grid.flatten(0, 1)[None].to(source),
                mode="bilinear", padding_mode="border", align_corners=False,
            )  # fmt: skip
            cut = tall[0].unflatten(1, (len(own), HEIGHT)).transpose(0, 1)
            beyond = torch.arange(broad)[None] >= torch.from_numpy(width[own])[:, None]
            cut = cut.masked_fill(beyond.to(cut.device)[:, None, None], 0.0)
            result = result.index_copy(0, torch.from_numpy(own).to(cut.device), cut)
        return result

    def _grid(self, boxes: Boxes, width: NDArray, broad: int, level: int) -> Tensor:
        """Where each pixel of the cut-outs comes from, ``[n, 48, broad, 2]`` in -1 to 1."""
        u = (np.arange(broad)[None] + 0.5) / width[:, None] - 0.5
        v = (np.arange(HEIGHT)[None] + 0.5) / HEIGHT - 0.5
        along = u * boxes.size[:, :1]
        down = v * boxes.size[:, 1:]
        cos, sin = np.cos(boxes.angle)[:, None, None], np.sin(boxes.angle)[:, None, None]
        x = boxes.centre[:, 0, None, None] + along[:, None, :] * cos - down[:, :, None] * sin
        y = boxes.centre[:, 1, None, None] + along[:, None, :] * sin + down[:, :, None] * cos
        high, wide = (size * 2**level for size in self.at(level).shape[2:])
        return torch.from_numpy(
            np.stack([x / wide * 2 - 1, y / high * 2 - 1], -1).astype(np.float32)
        )
