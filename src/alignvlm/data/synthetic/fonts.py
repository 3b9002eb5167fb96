"""Fonts that pages are drawn in: those of dependencies, of the system, and the user's own."""

from __future__ import annotations

import functools
import os
import unicodedata
from pathlib import Path

from PIL import ImageFont

from ...errors import ConfigError
from .corpus import package_folder


@functools.cache
def default_fonts() -> tuple[str, ...]:
    """Fonts that dependencies carry: everywhere the same: matplotlib's DejaVu, STIX; Pillow's."""
    folder = package_folder("matplotlib")
    files = sorted((folder / "mpl-data" / "fonts" / "ttf").glob("*.ttf")) if folder else []
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
    found = [str(file) for file in files if file.stem.startswith(names)]
    return (*filter(_covers_ascii, found), "pillow:default")


def plain_font() -> str:
    """DejaVu Sans, or Pillow's font where matplotlib is missing."""
    found = (font for font in default_fonts() if font.endswith("DejaVuSans.ttf"))
    return next(found, "pillow:default")


@functools.cache
def system_fonts() -> tuple[str, ...]:
    """Fonts under ``/usr/share/fonts`` and the folder in ``ALIGNVLM_FONTS`` that cover ASCII."""
    folders = ("/usr/share/fonts", os.environ.get("ALIGNVLM_FONTS", ""))
    files = {file for folder in folders if folder for file in _font_files(Path(folder))}
    return tuple(filter(_covers_ascii, sorted(files)))


@functools.cache
def _named_fonts() -> dict[str, str]:
    """The default fonts by the name of their file, as recipes write them: ``DejaVuSans``."""
    return {Path(file).stem: file for file in default_fonts()}


def _font_files(folder: Path) -> list[str]:
    return sorted(str(f) for f in folder.rglob("*") if f.suffix.lower() in (".ttf", ".otf"))


@functools.lru_cache(maxsize=64)
def expand_fonts(references: tuple[str, ...]) -> tuple[str, ...]:
    """Font files of files, folders and names (see ``RenderSpec.fonts``), in order, each once."""
    found: dict[str, None] = {}
    for reference in references:
        if reference == "system":
            files = list(system_fonts())
        elif Path(reference).is_dir():
            files = [file for file in _font_files(Path(reference)) if _covers_ascii(file)]
        else:
            file = _named_fonts().get(reference, reference)
            load_font(file, 24)
            files = [file]
        if not files:
            raise ConfigError(f"render: no .ttf or .otf font that covers ASCII in {reference!r}")
        found.update(dict.fromkeys(files))
    return tuple(found) or default_fonts()


@functools.lru_cache(maxsize=512)
def load_font(reference: str, px: int) -> ImageFont.FreeTypeFont:
    """Open a font file (or ``"pillow:default"``) at ``px`` pixels per em."""
    # the basic layout engine is always there; raqm is not, and places characters differently
    if reference == "pillow:default":
        font = ImageFont.load_default(px)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    try:
        return ImageFont.truetype(reference, px, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise ConfigError(f"render: font {reference!r} cannot be opened ({error})") from None


def _has_glyph(reference: str, char: str) -> bool:
    font = load_font(reference, 24)
    missing, mask = font.getmask("\U0010ffff"), font.getmask(char)
    # some fonts map characters they lack to empty glyphs
    return char == " " or (any(mask) and (mask.size, *mask) != (missing.size, *missing))


@functools.lru_cache(maxsize=16384)
def drawn_as(reference: str, char: str) -> str:
    """``char`` if the font has it, else its ASCII look-alike, else nothing."""
    if not char.isprintable():
        return ""
    if _has_glyph(reference, char):
        return char
    return unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()


@functools.cache
def _covers_ascii(reference: str) -> bool:
    try:
        return all(_has_glyph(reference, chr(code)) for code in range(0x20, 0x7F))
    except (ConfigError, OSError):
        return False
