"""Scan degradation that moves nothing: word boxes stay valid."""

from __future__ import annotations

import io
import random
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from ...errors import ConfigError

Degrader = Literal["basic", "augraphy"]


def degrade(
    image: Image.Image, rng: np.random.Generator, degrader: Degrader = "basic"
) -> Image.Image:
    """Make a clean page look scanned: blur, shading, contrast, noise, speckle, JPEG.

    Args:
        image: RGB page.
        rng: the only source of randomness.
        degrader: ``"basic"`` needs numpy and Pillow; ``"augraphy"`` the augraphy package.

    Returns:
        RGB image of the same size, every pixel where it was.

    Raises:
        ConfigError: augraphy is asked for and not installed.
    """
    return _augraphy(image, rng) if degrader == "augraphy" else _basic(image, rng)


def _basic(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    image = image.convert("RGB")
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    contrast, brightness = rng.uniform(0.7, 1.05), rng.uniform(-15, 10)
    # pixels * gain + bias; both grow to [height, width, 1] only where an effect needs it
    gain = np.full((1, 1, 1), contrast, np.float32)
    bias = np.full((1, 1, 1), 128 * (1 - contrast) + brightness, np.float32)
    if rng.random() < 0.5:  # light falls off towards a side
        slope_x, slope_y = rng.uniform(-0.15, 0.15, size=2).astype(np.float32)
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * slope_x
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * slope_y
        light = x + y + (1 - abs(slope_x) - abs(slope_y))
        gain, bias = gain * light, bias * light
    if rng.random() < 0.3:  # a slight tint of the paper
        tint = rng.uniform(0.92, 1.0, size=3).astype(np.float32)
        gain, bias = gain * tint, bias * tint
    if rng.random() < 0.7:
        noise = rng.standard_normal((height, width, 1), dtype=np.float32)
        bias = bias + noise * np.float32(rng.uniform(2, 10))
    pixels = np.asarray(image) * gain
    pixels += bias
    if rng.random() < 0.4:
        count = int(rng.uniform(0.0003, 0.003) * width * height)
        rows, columns = rng.integers(height, size=count), rng.integers(width, size=count)
        pixels[rows, columns] = rng.integers(0, 256, size=(count, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
    if rng.random() < 0.6:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(35, 90)))
        image = Image.open(file).convert("RGB")
    return image


def _augraphy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Augraphy's ink, paper and camera effects, without the ones that bend or crop the page."""
    try:
        import augraphy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "render: degrader 'augraphy' needs the augraphy package: pip install augraphy, "
            "or set degrader to 'basic'"
        ) from None
    # augraphy draws from the global generators: seed them for this page, then put them back
    seed = int(rng.integers(2**31))
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        pipeline = augraphy.AugraphyPipeline(
            ink_phase=[augraphy.InkBleed(p=0.3)],
            paper_phase=[augraphy.NoiseTexturize(p=0.3), augraphy.BrightnessTexturize(p=0.3)],
            post_phase=[
                augraphy.SubtleNoise(p=0.5),
                augraphy.Brightness(p=0.3),
                augraphy.Jpeg(p=0.5),
            ],
        )
        pixels = pipeline(np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]))
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    result = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).convert("RGB")
    if result.size != image.size:
        raise ConfigError(f"render: augraphy changed a page from {image.size} to {result.size} px")
    return result
