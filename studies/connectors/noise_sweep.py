"""How far noise moves what the language model is given.

The paper adds N(0, σ = 3) to the vision features and measures the mean cosine distance between the
connector's clean and noisy output: 0.0036 for ALIGN, 0.3938 for the MLP (arXiv 2502.01341).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from alignvlm.errors import ConfigError
from alignvlm.model.modeling import AlignVLMModel

Place = Literal["features", "pixels"]


@dataclass(frozen=True)
class NoiseStep:
    """One σ of a sweep.

    Attributes:
        sigma: as asked for.
        absolute: standard deviation of the noise, in the units of what it is added to.
        relative: that over the standard deviation of the clean features or pixels.
        cosine_distance: mean over visual tokens of 1 - cos(clean, noisy), at the connector's
            output.
    """

    sigma: float
    absolute: float
    relative: float
    cosine_distance: float


@contextmanager
def pixel_noise(model: AlignVLMModel, sigma: float, seed: int) -> Iterator[None]:
    """Add N(0, σ²) to the normalised pixels (-1 to 1) the encoder sees, while the context is open.

    The noise of a call follows the noise of the call before: the same calls, the same noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def add(module: Any, args: tuple) -> tuple:
        pixels, *rest = args
        noise = torch.randn(pixels.shape, generator=generator)
        return (pixels + sigma * noise.to(pixels.device, pixels.dtype), *rest)

    if not sigma:
        yield
        return
    handle = model.vision_model.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def noise_sweep(
    model: AlignVLMModel,
    pixel_values: Float[Tensor, "tiles 3 height width"],
    sigmas: Sequence[float],
    image_grids: Int[Tensor, "images 3"] | None = None,
    *,
    place: Place = "features",
    relative: bool = False,
    seed: int = 0,
) -> list[NoiseStep]:
    """Cosine distances at the connector's output for each σ; every σ scales the same noise.

    Args:
        image_grids: how the tiles lie, for an encoder that reads whole pages.
        relative: σ counts in standard deviations of the clean features (or pixels), so that
            encoders with different units can be compared. The paper's σ is in its encoder's units.

    Raises:
        ConfigError: a negative σ, or no tiles.
    """
    if not len(pixel_values) or min(sigmas, default=0) < 0:
        raise ConfigError("a noise sweep needs at least one tile and no negative sigma")
    table = model.text_embedding()
    features = model.encode_tiles(pixel_values, image_grids)
    clean = model.connector(features, table)
    base = features if place == "features" else pixel_values
    deviation = max(base.float().std().item(), 1e-12)
    steps = []
    for asked in sigmas:
        sigma = asked * deviation if relative else asked
        if place == "features":
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(features.shape, generator=generator)
            noisy = features + sigma * noise.to(features.device, features.dtype)
        else:
            with pixel_noise(model, sigma, seed):
                noisy = model.encode_tiles(pixel_values, image_grids)
        moved = model.connector(noisy, table)
        distance = 1 - F.cosine_similarity(clean.float(), moved.float(), dim=-1)
        steps.append(NoiseStep(asked, sigma, sigma / deviation, distance.mean().item()))
    return steps
