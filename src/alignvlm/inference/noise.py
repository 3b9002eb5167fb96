"""Gaussian noise on the vision encoder's features, as the paper's robustness study adds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import AlignVLMError
from ..model.modeling import AlignVLMModel


class Noise(NamedTuple):
    """What is added to features: N(0, σ²) in their own units, from a seed for each sample."""

    sigma: float
    seeds: Sequence[int]


def sample_seed(seed: int, sample: str) -> int:
    """A seed of 63 bits for one sample, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def noise_like(features: Tensor, seeds: Sequence[int], tiles: Sequence[int]) -> Tensor:
    """Standard normal noise ``[T, ...]`` shaped as ``features``: sample ``i`` owns the next
    ``tiles[i]`` tiles, and its noise depends on ``seeds[i]`` only, not on the batch around it.

    Raises:
        AlignVLMError: the tiles do not add up.
    """
    if sum(tiles) != len(features):
        raise AlignVLMError(f"noise for {sum(tiles)} tiles, the encoder saw {len(features)}")
    drawn = [
        torch.randn(count, *features.shape[1:], generator=torch.Generator().manual_seed(seed))
        for seed, count in zip(seeds, tiles, strict=True)
    ]
    return torch.cat(drawn).to(features.device, features.dtype)


@contextmanager
def noisy(
    model: AlignVLMModel, noise: Noise | None, image_grids: Tensor, pages: Sequence[int]
) -> Iterator[None]:
    """Add N(0, σ²) to the features that the connector reads, while the context is open.

    A hook on the vision encoder: encoder and connector run as they are, fused paths included.
    Source: arXiv 2502.01341, section on robustness to noise (σ = 3).

    Args:
        noise: with a seed for each sample; σ 0 or ``None``: nothing is added.
        image_grids: of the pages of all samples, ``[pages, 3]``.
        pages: of each sample.
    """
    if noise is None or not noise.sigma:
        yield
        return
    layer = model.config.vision_feature_layer
    tiles = image_grids[:, 0] * image_grids[:, 1] + image_grids[:, 2]
    own = [int(part.sum()) for part in tiles.split(list(pages))]

    def noised(features: Tensor) -> Tensor:
        return features + noise.sigma * noise_like(features, noise.seeds, own)

    def add(module: Any, args: Any, output: Any) -> Any:
        if layer == -1:
            output.last_hidden_state = noised(output.last_hidden_state)
            return output
        states = list(output.hidden_states)
        states[layer] = noised(states[layer])
        output.hidden_states = tuple(states)
        return output

    handle = model.vision_model.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
