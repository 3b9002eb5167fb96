"""Which implementation of the tiles' elementwise pass a device gets."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType

import torch

from . import tiles


def select_tiles(device: torch.device) -> ModuleType:
    """The module whose ``forward_tile`` and ``backward_tile`` serve ``device``.

    ``triton_tiles`` on a GPU with Triton, else the plain ``tiles``. A GPU without Triton gets one
    warning a process: each tile is then read and written several times instead of once.
    """
    return _gpu_tiles() if device.type == "cuda" else tiles


@functools.cache
def _gpu_tiles() -> ModuleType:
    try:
        return importlib.import_module(".triton_tiles", __package__)
    except ImportError as error:
        warnings.warn(
            f"Triton cannot be imported ({error}): vocab_mixture runs unfused and slower on the"
            " GPU; install triton to fuse it",
            stacklevel=2,
        )
        return tiles
