"""How ``vocab_mixture`` is cut into blocks, and whether its logits are kept.

Outer loop over the vocabulary, inner loop over rows: each block of W2, E and of their gradients is
read and written once, while a tile of logits stays in cache between the matrix products. Where the
logits are kept, the backward sweep takes the rows in few, large groups instead (``kept``).
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
KEPT_ROWS = {"cpu": 512, "cuda": 1024}
"""Kept logits are worked on in groups of so many rows, on a GPU in two of at least so many: beside
them an array of the size of a group is needed, and each group reads the weights again."""
KEPT_SHARE = 1 / 8
"""Logits are kept by default if they take at most this share of a device's free memory."""


class Blocks(NamedTuple):
    """How one call is cut.

    Attributes:
        columns: vocabulary rows of a block.
        rows: input rows of a tile.
        kept: whether the logits are kept for the backward sweep. Row statistics then come from
            them, unless they are given.
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
    in_groups: bool = False,
    budget: float | None = None,
) -> Blocks:
    """Blocks for ``rows`` x ``vocab`` logits of ``itemsize`` bytes on ``device``.

    Args:
        rows: N.
        vocab: V.
        itemsize: bytes of a logit as it would be kept.
        device: where the op runs.
        columns: vocabulary rows of a block, if the caller knows better.
        grad: whether a backward sweep will follow; without one nothing is kept.
        in_groups: rows of kept logits are corrected after their sweep, in groups (``kept``).
        budget: bytes that kept logits may take; default: a share of the device's memory.

    Raises:
        ValueError: ``columns`` is not positive.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"chunk_size must be positive, got {columns}")
    if budget is None:
        budget = KEPT_SHARE * free_bytes(str(device))
    kept = grad and rows * vocab * itemsize <= budget
    on_gpu = device.type == "cuda"
    limit = CUDA_ROWS if on_gpu else CPU_ROWS
    if kept and in_groups:
        half = max(-(-rows // 2), KEPT_ROWS["cuda"])
        limit = min(limit, half if on_gpu else KEPT_ROWS["cpu"])
    tiles = max(1, -(-rows // limit))
    tile_rows = max(1, -(-rows // tiles))
    if columns is None:
        if kept and on_gpu:  # beside so many logits large tiles are small
            tile_items = rows * vocab // 16
        elif kept:  # several arrays of this size are in use at once
            tile_items = CPU_TILE_BYTES // 16
        else:
            tile_items = (CUDA_TILE_BYTES if on_gpu else CPU_TILE_BYTES) // 4
        fitting = -(-tile_items // (tile_rows * 64)) * 64
        columns = max(512, min(fitting, 32768 if on_gpu else 8192))
    columns = max(1, min(columns, vocab))
    return Blocks(columns, tile_rows, kept)


@torch.compiler.assume_constant_result
def free_bytes(device: str) -> int:
    """Free memory of a device when it was first asked for in this process; 0 if nobody can tell.

    Asked once, so that every call of a program decides alike, and a constant to compilers.
    """
    if device not in _FREE:
        kind = torch.device(device).type
        if kind == "cuda":
            _FREE[device] = torch.cuda.mem_get_info(device)[0]
        else:
            _FREE[device] = _free_cpu_bytes() if kind == "cpu" else 0
    return _FREE[device]


_FREE: dict[str, int] = {}


def _free_cpu_bytes() -> int:
    """What the kernel calls available, or what a container may still take if that is less."""
    free = 0
    try:
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable"):
                free = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        return max(0, min(free, limit - int((group / "memory.current").read_text())))
    except (OSError, ValueError):  # no Linux, or no limit ("max")
        return free


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
