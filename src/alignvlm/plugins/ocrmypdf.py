"""OCRmyPDF's OCR engine: ``ocrmypdf --plugin alignvlm.plugins.ocrmypdf in.pdf out.pdf``.

The page encoder reads, and OCRmyPDF puts the words under the page's picture as invisible text. The
program ``tesseract`` is not needed. The networks are loaded in the processes that read, one page
each.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ocrmypdf import hookimpl
from ocrmypdf.builtin_plugins.tesseract_ocr import TesseractOptions
from ocrmypdf.exceptions import BadArgsError, InputFileError
from ocrmypdf.models.ocr_element import Baseline, BoundingBox, OcrClass, OcrElement
from ocrmypdf.pluginspec import OcrEngine, OrientationConfidence
from PIL import Image
from pydantic import BaseModel

from .. import __version__
from ..errors import AlignVLMError, DataError

if TYPE_CHECKING:
    from ..inference.page_reader import PageReader
    from ..inference.page_text import ReadLine, ReadWord, WordPage
    from ..reader.page import Box

TESSERACT = "ocrmypdf.builtin_plugins.tesseract_ocr"
"""OCRmyPDF's own engine, which ends the program where ``tesseract`` is not installed."""
SURE = 15.0
"""OCRmyPDF's number for an orientation that is certain; it turns pages from 14 on."""
LEAST_CHARACTERS = 20
"""Fewer do not show which way up a page is."""
_lock = Lock()


class ReadingOptions(BaseModel):
    """The plug-in's own options; ``model`` is ``--alignvlm-model``."""

    model: str = "reader"


@hookimpl
def initialize(plugin_manager: Any) -> None:
    """Leave OCRmyPDF's own engine out."""
    plugin_manager.set_blocked(TESSERACT)


@hookimpl
def add_options(parser: ArgumentParser) -> None:
    """Add ``--alignvlm-model``."""
    group = parser.add_argument_group("alignvlm", "Options of the alignvlm reader")
    group.add_argument(
        "--alignvlm-model",
        metavar="MODEL",
        default="reader",
        help="what reads: reader (default), smol, a folder or a hub id",
    )


@hookimpl
def register_options() -> dict[str, type[BaseModel]]:
    """The plug-in's options, and tesseract's defaults, which OCRmyPDF looks at in any case."""
    return {"alignvlm": ReadingOptions, "tesseract": TesseractOptions}


@hookimpl
def check_options(options: Any) -> None:
    """Refuse what cannot be done before pages are made.

    Raises:
        BadArgsError: no such model, or another engine or renderer was asked for.
    """
    if options.pdf_renderer == "sandwich":
        raise BadArgsError(
            "--pdf-renderer sandwich needs an engine that writes PDFs: leave it out for alignvlm"
        )
    if options.ocr_engine == "tesseract":
        raise BadArgsError("--ocr-engine tesseract: leave out --plugin alignvlm.plugins.ocrmypdf")
    from ..weights.resolve import resolve

    with _told():
        resolve(options.alignvlm.model)


@hookimpl
def get_ocr_engine(options: Any) -> OcrEngine | None:
    """The reader, unless no engine is wanted."""
    return None if options is not None and options.ocr_engine == "none" else ReaderEngine()


class ReaderEngine(OcrEngine):
    """Reads page images; see :class:`ocrmypdf.pluginspec.OcrEngine`."""

    @staticmethod
    def version() -> str:
        return __version__

    @staticmethod
    def creator_tag(options: Any) -> str:
        return f"alignvlm {__version__}"

    def __str__(self) -> str:
        return f"alignvlm {__version__}"

    @staticmethod
    def languages(options: Any) -> set[str]:
        """None by name: whatever the reader's alphabet spells is read, and ``-l`` is not used."""
        return set()

    @staticmethod
    def get_orientation(input_file: Path, options: Any) -> OrientationConfidence:
        page = _page(input_file, options)
        words = [word for line in page.lines for word in line.words]
        if sum(len(word.text) for word in words) < LEAST_CHARACTERS:
            return OrientationConfidence(0, 0.0)
        sure = sum(word.confidence for word in words) / len(words)
        return OrientationConfidence(90 * page.lines[0].turned, SURE * sure)

    @staticmethod
    def get_deskew(input_file: Path, options: Any) -> float:
        with _reading(input_file, options) as (reader, image):
            return reader.slant(image)

    @staticmethod
    def supports_generate_ocr() -> bool:
        return True

    @staticmethod
    def generate_ocr(
        input_file: Path, options: Any, page_number: int = 0
    ) -> tuple[OcrElement, str]:
        page = _page(input_file, options, page_number + 1)
        return as_element(page), page.text

    @staticmethod
    def generate_hocr(input_file: Path, output_hocr: Path, output_text: Path, options: Any) -> None:
        from ..inference.hocr import as_hocr

        page = _page(input_file, options)
        output_hocr.write_text(as_hocr(input_file.name, [page]), "utf-8")
        output_text.write_text(page.text, "utf-8")

    @staticmethod
    def generate_pdf(*_: Any, **__: Any) -> None:
        raise NotImplementedError("alignvlm writes no PDF: OCRmyPDF's fpdf2 renderer does")


def as_element(page: WordPage) -> OcrElement:
    """A page as OCRmyPDF takes it: paragraphs of lines of words, px of the image."""
    from ..inference.page_text import paragraphs

    parts = [
        _element(OcrClass.PARAGRAPH, None, children=[_line(line) for line in part.lines])  # type: ignore[arg-type]
        for part in paragraphs(page.lines)
    ]
    size = (0.0, 0.0, float(page.width), float(page.height))
    return _element(OcrClass.PAGE, size, children=parts, page_number=page.page - 1)


def _line(line: ReadLine) -> OcrElement:
    from ..inference.hocr import baseline

    words = [_word(word) for word in line.words]
    if line.turned:
        angle = float(-90 * line.turned % 360)
        return _element(OcrClass.LINE, line.box, children=words, textangle=angle)
    return _element(OcrClass.LINE, line.box, children=words, baseline=Baseline(*baseline(line)))


def _word(word: ReadWord) -> OcrElement:
    return _element(OcrClass.WORD, word.box, text=word.text, confidence=word.confidence)


def _element(kind: str, box: Box | None, **keys: Any) -> OcrElement:
    return OcrElement(kind, bbox=None if box is None else BoundingBox(*box), **keys)


def _page(file: Path, options: Any, number: int = 1) -> WordPage:
    with _reading(file, options) as (reader, image):
        return reader.read(image, number)


@contextmanager
def _reading(file: Path, options: Any) -> Iterator[tuple[PageReader, Image.Image]]:
    """The reader and a page image; with ``--use-threads`` pages wait for one another."""
    from ..documents.pictures import open_image

    with _lock, _told():
        yield _reader(options.alignvlm.model, options.jobs), open_image(file)


@cache
def _reader(model: str, jobs: int | None) -> PageReader:
    """Loaded once a process. OCRmyPDF works on ``jobs`` pages at a time, which share the CPUs."""
    import torch
    from transformers.utils import logging

    from ..inference.page_reader import PageReader

    logging.disable_progress_bar()
    cpus = os.cpu_count() or 1
    torch.set_num_threads(max(1, cpus // (jobs or cpus)))
    return PageReader.load(model)


@contextmanager
def _told() -> Iterator[None]:
    """Our errors as OCRmyPDF's, which are one line and an exit code."""
    try:
        yield
    except DataError as error:
        raise InputFileError(str(error)) from error
    except AlignVLMError as error:
        raise BadArgsError(str(error)) from error
