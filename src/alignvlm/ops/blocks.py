"""How ``vocab_mixture`` is cut into blocks: columns of the vocabulary, and rows within them.

Outer loop over the vocabulary, inner loop over rows: each block of W2, E and of their gradients is
read and written once, while a tile of logits stays in cache between the matrix products.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

CPU_ROWS = 1024
"""Rows of a tile on a CPU; a plain matrix product is no faster with more."""
CUDA_ROWS = 16384
CUDA_TILE_BYTES = 96 * 2**20
"""On a GPU a tile is large enough to keep every matrix product near its peak rate."""
KEEP_BYTES = 32 * 2**20
"""All logits are kept for the backward sweep, instead of being computed again, if they are this
small: a pruned vocabulary, or a few rows."""


class Blocks(NamedTuple):
    """How one call is cut.

    Attributes:
        columns: vocabulary rows of a block.
        rows: input rows of a tile.
        kept: whether the logits are kept for the backward sweep.
    """

    columns: int
    rows: int
    kept: bool


def choose_blocks(
    rows: int,
    vocab: int,
    itemsize: int,
    device: torch.device,
    *,
    columns: int | None = None,
    grad: bool = True,
) -> Blocks:
    """Blocks for ``rows`` x ``vocab`` logits of ``itemsize`` bytes on ``device``.

    Args:
        rows: N.
        vocab: V.
        itemsize: bytes of a logit.
        device: where the op runs.
        columns: vocabulary rows of a block, if the caller knows better.
        grad: whether a backward sweep will follow.

    Raises:
        ValueError: ``columns`` is not positive.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"chunk_size must be positive, got {columns}")
    on_gpu = device.type == "cuda"
    limit = CUDA_ROWS if on_gpu else CPU_ROWS
    tiles = max(1, -(-rows // limit))
    tile_rows = max(1, -(-rows // tiles))
    if columns is None:
        tile_bytes = CUDA_TILE_BYTES if on_gpu else CPU_TILE_BYTES
        fitting = tile_bytes // (tile_rows * itemsize) // 64 * 64
        columns = max(512, min(fitting, 32768 if on_gpu else 8192))
    columns = max(1, min(columns, vocab))
    return Blocks(columns, tile_rows, grad and rows * vocab * itemsize <= KEEP_BYTES)


def _cpu_tile_bytes() -> int:
    """A quarter of the last-level cache, 1 to 16 MiB: most of a tile's work stays in it."""
    try:
        sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        largest = max(int(size.read_text().strip().rstrip("K")) * 1024 for size in sizes)
    except (OSError, ValueError):
        largest = 32 * 2**20
    return min(16 * 2**20, max(2**20, largest // 4))


CPU_TILE_BYTES = _cpu_tile_bytes()
"""A constant: ``torch.compile`` cannot trace reading it."""
