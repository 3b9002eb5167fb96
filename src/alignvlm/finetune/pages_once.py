"""Pages that are encoded once in a run, where neither encoder nor connector trains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded

MOST_BYTES = 2**30
"""Of visual tokens that are kept; later pages are encoded each time. A dense page takes 10 MB."""


@contextmanager
def pages_once(model: AlignVLMForConditionalGeneration, most: int = MOST_BYTES) -> Iterator[None]:
    """Inside, ``model.model.encode`` remembers what it gave for the same pixels, without the blank
    tokens and the features. Only for an encoder and a connector that do not change."""
    core = model.model
    own = core.encode
    kept: dict[bytes, Encoded] = {}
    held = 0

    def encode(
        pixel_values: Tensor, image_grids: Tensor, vocab_targets: Tensor | None = None
    ) -> Encoded:
        nonlocal held
        if vocab_targets is not None:
            return own(pixel_values, image_grids, vocab_targets)
        key = _key(pixel_values, image_grids)
        found = kept.get(key)
        if found is None:
            # a run that goes on must see what an unbroken one saw, autocast or not
            with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
                found = own(pixel_values, image_grids).lean()
            size = sum(tokens.nbytes for tokens in found.tokens)
            # pages of a training batch do not meet again
            if held + size <= most and (len(image_grids) == 1 or not core.training):
                kept[key], held = found, held + size
        return found.full()

    core.encode = encode  # type: ignore[method-assign]
    try:
        yield
    finally:
        del core.encode


def _key(pixel_values: Tensor, image_grids: Tensor) -> bytes:
    digest = hashlib.sha256(image_grids.cpu().numpy().tobytes())
    digest.update(pixel_values.cpu().float().contiguous().numpy())
    return digest.digest()
