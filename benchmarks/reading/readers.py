"""The readers that are measured, and the small interface they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from alignvlm.compose.assemble import compose
from alignvlm.data.harvest.ocr_words import Box, text_lines
from alignvlm.errors import ConfigError
from alignvlm.inference.ask import ask, encode_pages, load_model
from alignvlm.inference.inspect import read_page
from alignvlm.model.outputs import Encoded

NAMES = ("alignvlm", "rapidocr")
"""The reader under test and its rival."""
PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless", "opencv-python", "transformers",
            "tokenizers", "pypdfium2", "pillow", "matplotlib", "numpy")  # fmt: skip
"""Their versions are stored with the results, where they are installed."""


class ReadWord(NamedTuple):
    """A word, or a piece of a line: its text and its upright box, px of the page image."""

    text: str
    box: tuple[float, float, float, float]


class PageText(NamedTuple):
    """A page's lines in reading order, words separated by one space."""

    lines: list[str]


Reader = Callable[[Image.Image], PageText]


@dataclass(frozen=True)
class Contestant:
    """A reader and what its costs are measured on.

    Attributes:
        read: the page's text, for tables 1 to 3.
        encode: everything from the page image to what the language model is given (tables 4 and
            5); None where that is another contestant's.
        first_token: everything from the page image and a question to the first token of the answer
            (table 6), without memory of an earlier call.
    """

    read: Reader
    encode: Callable[[Image.Image], Any] | None = None
    first_token: Callable[[Image.Image, str], Any] | None = None


def alignvlm_reader(model: str | None, threads: int) -> Contestant:
    """The reader of a composed model: what P_vocab says, token by token, is its text.

    Args:
        model: what ``resolve`` takes; default: the reader with SmolLM2, composed here.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    if model is None:
        network, processor = compose("reader", "smollm2")
        network.eval()
    else:
        network, processor = load_model(model)

    def encode(image: Image.Image) -> Encoded:
        return encode_pages(network, processor, [image])

    def read(image: Image.Image) -> PageText:
        reading = read_page(network, processor, image, 1, encode(image))
        return PageText(reading.text(processor.tokenizer).splitlines())

    def first_token(image: Image.Image, question: str) -> str:
        return ask(network, processor, [image], question, max_new_tokens=1).text

    return Contestant(read, encode, first_token)


def rapidocr_reader(threads: int, language_model: str) -> dict[str, Contestant]:
    """RapidOCR, read once and scored twice: in its own order, and joined to rows.

    Args:
        threads: of onnxruntime, OpenCV and torch.
        language_model: who answers from its text.
    """
    rival = RapidOcr(threads, language_model)
    return {
        "rapidocr": Contestant(rival.read, rival.read, rival.first_token),
        "rapidocr, rows": Contestant(rival.rows),
    }


class RapidOcr:
    """RapidOCR: detector, text direction classifier and recogniser, in onnxruntime.

    All settings are RapidOCR's own but for the number of threads, of onnxruntime and of OpenCV.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self, threads: int, language_model: str) -> None:
        try:
            import cv2  # pyright: ignore[reportMissingImports]
            from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("rapidocr and onnxruntime: pip install 'alignvlm[ocr]'") from None
        cv2.setNumThreads(threads)
        engine = "EngineConfig.onnxruntime"
        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                f"{engine}.intra_op_num_threads": threads,
                f"{engine}.inter_op_num_threads": 1,
            }
        )
        self._language_model = language_model
        self._last: tuple[Image.Image, list[ReadWord]] | None = None

    def pieces(self, page: Image.Image) -> list[ReadWord]:
        """The pieces of text it finds, in its own order: from top to bottom, left to right."""
        bgr = np.ascontiguousarray(np.asarray(page.convert("RGB"))[:, :, ::-1])
        found: Any = self._engine(bgr)
        if found.boxes is None or found.txts is None:
            return []
        return [
            ReadWord(text, (*corners.min(0).tolist(), *corners.max(0).tolist()))
            for text, corners in zip(found.txts, found.boxes, strict=True)
        ]

    def read(self, page: Image.Image) -> PageText:
        """Its pieces as lines, in its own order."""
        pieces = self.pieces(page)
        self._last = page, pieces
        return PageText([" ".join(piece.text.split()) for piece in pieces])

    def rows(self, page: Image.Image) -> PageText:
        """The same pieces joined to rows across the page, as :func:`.text_lines` does.

        The page that was read last is not read again.
        """
        known = self._last is not None and self._last[0] is page
        pieces = self._last[1] if known and self._last is not None else self.pieces(page)
        rows = text_lines([Box(piece.text, *piece.box) for piece in pieces])
        return PageText([" ".join(" ".join(box.text for box in row).split()) for row in rows])

    @cached_property
    def _language(self) -> Any:
        from alignvlm.inference.answerers import LanguageModel

        return LanguageModel.load(self._language_model, dtype=torch.float32)

    def first_token(self, page: Image.Image, question: str) -> Any:
        """Read the page, then let the language model begin its answer from the text."""
        prompt = "\n".join([*self.read(page).lines, question])
        return self._language.answer([prompt], [1], guard=False)


def contestants(
    names: Sequence[str], model: str | None, threads: int, language_model: str
) -> dict[str, Contestant]:
    """The chosen readers by name."""
    torch.set_num_threads(threads)
    made: dict[str, Contestant] = {}
    if "alignvlm" in names:
        made["alignvlm"] = alignvlm_reader(model, threads)
    if "rapidocr" in names:
        made |= rapidocr_reader(threads, language_model)
    return made


def versions() -> dict[str, str]:
    """Versions of what takes part and is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
