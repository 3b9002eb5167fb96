"""Pictures to page images: PNG, JPEG, TIFF (a page a frame), WebP, GIF and more."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..errors import DataError
from ..processing.image_processor import MAX_PIXELS, to_rgb

FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
"""Picture formats opened (never EPS and the like, which run other programs)."""
PICTURE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".pbm",
    ".pgm", ".ppm", ".pnm", ".jp2", ".avif",
)  # fmt: skip
"""How files of these formats are usually called."""
MAX_SIDE = 65_535
"""Px; JPEG's own limit. A picture of one column takes seconds and gigabytes to decode."""
MAX_FRAMES = 10_000
"""Pages of a TIFF."""
SUBFILE, REDUCED = 254, 1
"""TIFF's tag for what a frame is, and the bit that says a smaller copy of another one."""


def open_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the first frame of a picture as RGB.

    Raises:
        DataError: missing file, not a picture, truncated, or more than ``max_pixels`` pixels.
    """
    with open_picture(Path(path)) as picture:
        return picture.render(0, 72, max_pixels)


class Picture:
    """An open picture; only TIFF has more than one page."""

    def __init__(self, path: Path, image: Image.Image) -> None:
        self.path, self.image = path, image
        self.frames = _frames(path, image) if image.format == "TIFF" else [0]
        self.count = len(self.frames)

    def scale(self, index: int, dpi: float, max_pixels: int) -> None:
        """A picture has no points."""

    def render(self, index: int, dpi: float, max_pixels: int) -> Image.Image:
        """One page in its own pixels, whatever ``dpi`` says.

        Raises:
            DataError: damaged, or more than ``max_pixels``.
        """
        with _decoding(self.path):
            if self.image.tell() != self.frames[index]:
                self.image.seek(self.frames[index])
            check_pixels(self.path, *self.image.size, max_pixels)
            self.image.load()
            return to_rgb(self.image).copy()


def _frames(path: Path, image: Image.Image) -> list[int]:
    """Frames of a TIFF that are pages; thumbnails of others are none."""
    whole, count = [], 0
    with suppress(EOFError):
        for count in range(MAX_FRAMES + 1):
            image.seek(count)
            if not image.tag_v2.get(SUBFILE, 0) & REDUCED:  # type: ignore[attr-defined]
                whole.append(count)
        raise DataError(f"{path}: more than {MAX_FRAMES} pages")
    image.seek(0)
    return whole or list(range(count))


@contextmanager
def open_picture(path: Path, data: bytes | None = None) -> Iterator[Picture]:
    """A picture whose pages are decoded when they are rendered.

    Args:
        data: the file's bytes, where they do not come from a file.

    Raises:
        DataError: missing, no picture of :data:`FORMATS`, or damaged.
    """
    require_file(path, data)
    Image.init()
    _quiet_libtiff()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with _decoding(path):
        picture = Picture(
            path, Image.open(path if data is None else BytesIO(data), formats=formats)
        )
    with picture.image:
        yield picture


@cache
def _quiet_libtiff() -> None:
    """libtiff writes what is wrong with a file to stderr, before our one line. It is silenced where
    it comes with Pillow; a system's own is left alone."""
    package = Path(Image.__file__).parent
    for file in [*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")]:
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(file))
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Pillow's errors as ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # size is checked by us; odd metadata is not our business
        try:
            yield
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: too many pixels, refused: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise DataError(f"{path}: not an image (nor a PDF) this program can read") from error
        except Exception as error:  # decoders raise every kind of error on damaged bytes
            raise DataError(f"{path}: the image is truncated or damaged: {error}") from error


def require_file(path: Path, data: bytes | None = None) -> None:
    """Raise :class:`DataError` where there is no file, or nothing in it."""
    if data is None and not path.exists():
        raise DataError(f"{path}: no such file")
    if data is None and not path.is_file():
        raise DataError(f"{path}: not a file")
    if (path.stat().st_size if data is None else len(data)) == 0:
        raise DataError(f"{path}: the file is empty")


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise :class:`DataError` where a page would have too many pixels, or too long a side."""
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width} x {height} pixels is more than the limit of {max_pixels} pixels"
        )
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{path}: {width} x {height} pixels: a side is more than {MAX_SIDE} pixels")
