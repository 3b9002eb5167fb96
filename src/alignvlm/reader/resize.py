"""A page at the size at which the detector looks at it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHORT, LONG = 736, 2000
"""Px: a page's short side is enlarged to the first; its long side is at most the second."""
STRIDE = 32
"""The detector takes whole multiples of it."""


def detector_input(
    page: Float[Tensor, "3 height width"],
) -> tuple[Float[Tensor, "1 3 h w"], tuple[float, float], tuple[int, int]]:
    """The detector's input, channels last; px of the page for each of its px in x and y; and the
    height and width of it that the page covers."""
    height, width = page.shape[1:]
    scale = min(max(1.0, SHORT / min(height, width)), LONG / max(height, width))
    size = max(STRIDE, round(height * scale)), max(STRIDE, round(width * scale))
    pixels = page[None]
    if size != (height, width):
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=scale < 1)
    pad = -size[1] % STRIDE, -size[0] % STRIDE
    pixels = F.pad(pixels, (0, pad[0], 0, pad[1]), mode="replicate")
    return (
        pixels.contiguous(memory_format=torch.channels_last),
        (width / size[1], height / size[0]),
        size,
    )
