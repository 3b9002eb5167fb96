"""Images in, tiles out."""

import os
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs

from ..errors import DataError
from ..tiling import Grid, choose_grid, covering_grid, cut, fit_size

MAX_PIXELS = 178_956_970
"""Pages with more pixels are refused: Pillow's own limit against decompression bombs."""
ORDINARY_PIXELS = 4_100_000
"""A3 at 144 dpi. PDF pages up to it are scaled to the tiles here, as pages of training are, rather
than rendered at their size."""
WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
NEARLY_WHITE, WHITE_INK = 230, 0.98
"""A picture is white ink on nothing where so large a share of its ink is at least that bright."""
PHOTOMETRIC = 262
"""TIFF's tag; 0 means that zero is white."""
DEPTHS = (8, 10, 12, 16)
"""Bits that grey is stored with, often in 16-bit files."""


class AlignVLMImagesKwargs(ImagesKwargs, total=False):
    """What can be set per call, beside transformers' own."""

    max_tiles: int
    min_tiles: int
    thumbnail: bool
    max_pixels: int
    enlarge: bool


def to_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Upright 8-bit RGB from any Pillow image.

    EXIF rotation is applied; transparency is laid on white, or on black where what is drawn is
    white; 10-, 12- and 16-bit and float grey is scaled to its range, also where zero is white;
    CMYK and palettes are converted.

    Raises:
        DataError: an empty image, more than ``max_pixels``, or a file that cannot be decoded.
    """
    _check_size(*image.size, max_pixels)
    zero_is_white = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be decoded: {error}") from None
    if image.mode.startswith("I") or image.mode == "F":
        grey = _scale_to_byte(np.asarray(image))
        # Pillow turns such pictures round itself where they have 8 bits or fewer
        return Image.fromarray(255 - grey if zero_is_white else grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, BLACK if _is_white_ink(rgba) else WHITE)
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _is_white_ink(image: Image.Image) -> bool:
    """Whether an RGBA picture shows hardly anything that could be seen on white."""
    pixels = np.asarray(image)
    alpha = pixels[..., 3].astype(np.float32)
    if alpha.min() == 255 or alpha.max() == 0:
        return False
    bright = pixels[..., :3].min(-1) >= NEARLY_WHITE
    return bool((alpha * bright).sum() > WHITE_INK * alpha.sum())


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height == 0:
        raise DataError(f"the image is empty ({width}x{height} px)")
    if width * height > max_pixels:
        raise DataError(
            f"the image has {width}x{height} px, more than the limit of {max_pixels}; "
            "scale it down first (a decompression bomb otherwise)"
        )


def _scale_to_byte(grey: NDArray) -> NDArray:
    """10- to 32-bit or float grey to 8 bits, by the smallest usual range that holds the values."""
    values = np.nan_to_num(grey.astype(np.float64))
    peak = values.max()
    if peak <= 1 and grey.dtype.kind == "f":
        top = 1.0
    else:
        top = next((2.0**bits - 1 for bits in DEPTHS if peak < 2**bits), peak)
    return np.clip(values / top * 255, 0, 255).round().astype(np.uint8)


class AlignVLMImageProcessor(PilBackend):
    """Cut each image into at most ``max_tiles`` tiles of ``size``.

    Returns ``pixel_values`` float32 ``[all tiles, 3, height, width]`` and ``image_grids`` int64
    ``[images, 3]``: tile rows, tile columns, and 1 if a thumbnail tile follows.

    Args:
        size: pixels of a tile, ``{"height", "width"}``.
        max_tiles, min_tiles: bounds of the grid (paper: at most 9).
        thumbnail: add the whole page, shrunk to one tile, where the grid has more than one.
        max_pixels: larger images are refused.
        enlarge: scale small images up until they fill their canvas. Without it an image keeps its
            own pixels, with white to the right and below, and is scaled down only where
            ``max_tiles`` tiles do not hold it.
    """

    valid_kwargs = AlignVLMImagesKwargs
    model_input_names = ["pixel_values", "image_grids"]
    resample = Image.Resampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    max_tiles = 9
    min_tiles = 1
    thumbnail = False
    max_pixels = MAX_PIXELS
    enlarge = True

    def useful_pixels(self) -> int:
        """Px of a page above which a finer rendering of it gives the tiles nothing more.

        A page that has as many px as the largest grid is scaled up in none: the same grid is chosen
        for it as for a larger one.
        """
        canvas = self.max_tiles * self.size["height"] * self.size["width"]
        return min(max(ORDINARY_PIXELS, canvas), self.max_pixels)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Read what is given as a path, URL or base64 text; leave images as they are.

        Raises:
            DataError: it cannot be read.
        """
        image = image_url_or_urls
        if isinstance(image, list | tuple):
            return [self.fetch_images(one) for one in image]
        if getattr(image, "ndim", 0) == 2:  # a grey array
            return image[None]
        try:
            if isinstance(image, PathLike) or (isinstance(image, str) and os.path.isfile(image)):
                # transformers' loader would drop transparency and clip 16-bit grey
                with Image.open(image) as file:
                    return ImageOps.exif_transpose(file)
            return super().fetch_images(image)
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            name = str(image) if len(str(image)) < 200 else f"{str(image)[:60]}..."
            why = (str(error) or repr(error)).splitlines()[0][:200]
            raise DataError(f"cannot read the image {name!r}: {why}") from None

    def process_image(self, image: Any, **kwargs: Any) -> NDArray:  # type: ignore[override]
        """One image to uint8 ``[3, height, width]``."""
        max_pixels = kwargs.get("max_pixels") or self.max_pixels
        if isinstance(image, Image.Image):
            return np.asarray(to_rgb(image, max_pixels)).transpose(2, 0, 1)
        array = _channels_first(np.asarray(image))
        _check_size(array.shape[-1], array.shape[-2], max_pixels)
        if array.dtype != np.uint8:
            array = _scale_to_byte(array)
        if array.shape[0] == 4:  # transparency is laid on white
            return np.asarray(to_rgb(Image.fromarray(array.transpose(1, 2, 0)))).transpose(2, 0, 1)
        return np.repeat(array, 3, axis=0) if array.shape[0] == 1 else array

    def grid_for(self, width: int, height: int, **kwargs: Any) -> tuple[Grid, bool]:
        """Tile grid of an image of ``width x height`` px, and whether it gets a thumbnail."""
        size, most = self._setting("size", kwargs), self._setting("max_tiles", kwargs)
        tile = size["width"], size["height"]
        if self._setting("enlarge", kwargs):
            grid = choose_grid(width, height, *tile, most, self._setting("min_tiles", kwargs))
        else:
            grid = covering_grid(width, height, *tile, most)
        return grid, bool(self._setting("thumbnail", kwargs)) and grid.tiles > 1

    def _setting(self, name: str, given: dict[str, Any]) -> Any:
        """What a call gives, or else this processor's own."""
        value = given.get(name)
        return getattr(self, name) if value is None else value

    def _preprocess(  # type: ignore[override]
        self,
        images: list[NDArray],
        size: SizeDict,
        resample: Any = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Any = None,
        image_std: Any = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        tile = {"height": int(size["height"]), "width": int(size["width"])}
        tiles, grids, enlarge = [], [], self._setting("enlarge", kwargs)
        for image in images:
            height, width = image.shape[-2:]
            grid, thumbnail = self.grid_for(width, height, **{**kwargs, "size": tile})
            page = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            tiles += list(cut(_on_canvas(page, grid, tile, resample, enlarge), grid, *_wh(tile)))
            if thumbnail:
                tiles.append(_on_canvas(page, Grid(1, 1), tile, resample, enlarge))
            grids.append([grid.rows, grid.cols, int(thumbnail)])
        pixels = np.stack(tiles).astype(np.float32)
        if do_rescale:
            pixels *= rescale_factor
        if do_normalize:
            mean = np.asarray(image_mean, np.float32)[:, None, None]
            pixels = (pixels - mean) / np.asarray(image_std, np.float32)[:, None, None]
        return BatchFeature(
            {"pixel_values": pixels, "image_grids": np.asarray(grids, np.int64)},
            tensor_type=return_tensors,
        )


def _wh(tile: dict[str, int]) -> tuple[int, int]:
    return tile["width"], tile["height"]


def _on_canvas(
    page: Image.Image, grid: Grid, tile: dict[str, int], resample: Any, enlarge: bool
) -> NDArray:
    """The page scaled to fit the grid's canvas, white to the right and below; uint8 CHW."""
    canvas_size = (grid.cols * tile["width"], grid.rows * tile["height"])
    target = fit_size(*page.size, grid, *_wh(tile), enlarge)
    if page.size != target:
        page = page.resize(target, resample or Image.Resampling.BICUBIC)
    if target != canvas_size:
        canvas = Image.new("RGB", canvas_size, WHITE[:3])
        canvas.paste(page)
        page = canvas
    return np.asarray(page).transpose(2, 0, 1)


def _channels_first(array: NDArray) -> NDArray:
    """A grey, RGB or RGBA array of either layout as ``[channels, height, width]``."""
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return array
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        return array.transpose(2, 0, 1)
    raise DataError(f"an image array must have 1, 3 or 4 channels, got shape {array.shape}")
