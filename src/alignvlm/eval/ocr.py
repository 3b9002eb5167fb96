"""The rival without a connector: OCR, then the same language model on the text it read.

`RapidOCR <https://github.com/RapidAI/RapidOCR>`_ with the models of its wheel (PP-OCR, Apache-2.0),
``pip install 'alignvlm[ocr]'``; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..errors import ConfigError
from ..image_processor import to_rgb
from .answerers import LanguageModel, Query, Reply

MAX_TEXT_TOKENS = 1_536
"""Default limit of the pages' text: three dense pages, and within every context we know."""


class Box(NamedTuple):
    """A piece of text that was found.

    Attributes:
        text: what it says.
        x0, y0, x1, y1: upright box in px.
    """

    text: str
    x0: float
    y0: float
    x1: float
    y1: float


Reader = Callable[[Image.Image], list[Box]]


def reading_order(boxes: Sequence[Box]) -> str:
    """The text of a page line by line, from top to bottom and from left to right.

    A box joins a line if the middle of its height lies within that line's first box, or the other
    way round; gaps wider than two letters become two spaces, so table columns stay apart.
    """
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: ((b.y0 + b.y1) / 2, b.x0)):
        middle = (box.y0 + box.y1) / 2
        for line in reversed(lines[-3:]):
            first = line[0]
            if first.y0 <= middle <= first.y1 or box.y0 <= (first.y0 + first.y1) / 2 <= box.y1:
                line.append(box)
                break
        else:
            lines.append([box])
    return "\n".join(map(_line, lines))


def _line(boxes: list[Box]) -> str:
    boxes = sorted(boxes, key=lambda box: box.x0)
    text = boxes[0].text.strip()
    for left, box in pairwise(boxes):
        letter = max(1.0, (left.x1 - left.x0) / max(1, len(left.text)))
        text += ("  " if box.x0 - left.x1 > 2 * letter else " ") + box.text.strip()
    return text


class RapidOcrReader:
    """RapidOCR, with as many threads as torch has.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR

            names = ("rapidocr", "onnxruntime")
            self.engine = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        except (ImportError, metadata.PackageNotFoundError):
            raise ConfigError(
                "the OCR rival needs rapidocr and onnxruntime: pip install 'alignvlm[ocr]'"
            ) from None
        self._read = RapidOCR(
            params={
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, page: Image.Image) -> list[Box]:
        """The pieces of text on a page, in no particular order."""
        found: Any = self._read(np.asarray(to_rgb(page))[:, :, ::-1])  # it takes BGR
        if found.boxes is None or found.txts is None:
            return []
        return [
            Box(text, *corners.min(0).tolist(), *corners.max(0).tolist())
            for text, corners in zip(found.txts, found.boxes, strict=True)
        ]


class OcrAnswerer:
    """OCR text where the page would be, then the prompt, to a language model.

    Args:
        language: who answers.
        reader: default: RapidOCR.
        max_text_tokens: of all pages' text together; what is cut off is counted in each sample's
            ``ocr_tokens`` and ``ocr_tokens_cut``.
        repetition_guard: end an answer that goes round in circles.
    """

    name = "ocr"
    needs_pages = True

    def __init__(
        self,
        language: LanguageModel,
        reader: Reader | None = None,
        *,
        max_text_tokens: int = MAX_TEXT_TOKENS,
        repetition_guard: bool = False,
    ) -> None:
        if max_text_tokens < 1:
            raise ConfigError("max_text_tokens must be at least 1")
        self.language, self.repetition_guard = language, repetition_guard
        self.max_text_tokens = min(max_text_tokens, language.max_length // 2)
        self.reader = reader or RapidOcrReader()
        self._texts: dict[bytes, str] = {}

    def settings(self) -> dict[str, Any]:
        """See :class:`~alignvlm.eval.answerers.Answerer`."""
        engine = getattr(self.reader, "engine", "custom")
        own = {"ocr": engine, "max_text_tokens": self.max_text_tokens}
        return {**own, **self.language.settings(self.repetition_guard)}

    def answer(self, queries: list[Query]) -> list[Reply]:
        """See :class:`~alignvlm.eval.answerers.Answerer`."""
        turns, details = [], []
        for query in queries:
            text = "\n\n".join(self.text(page) for page in query.pages)
            kept, record = self._cut(text)
            turns.append(f"{kept}\n{query.prompt}")
            details.append(record)
        limits = [query.max_new_tokens for query in queries]
        said = self.language.answer(turns, limits, guard=self.repetition_guard)
        return [
            Reply(one.text, new_tokens=one.new_tokens, details=record)
            for one, record in zip(said, details, strict=True)
        ]

    def text(self, page: Image.Image) -> str:
        """What the OCR reads on a page; several questions about a page read it once."""
        data = f"{page.mode}{page.size}".encode() + page.tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._texts:
            self._texts[key] = reading_order(self.reader(page))
        return self._texts[key]

    def _cut(self, text: str) -> tuple[str, dict[str, int]]:
        tokenizer = self.language.tokenizer
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = encoded["offset_mapping"]
        if len(spans) <= self.max_text_tokens:
            return text, {"ocr_tokens": len(spans), "ocr_tokens_cut": 0}
        end = spans[self.max_text_tokens - 1][1]
        cut = len(spans) - self.max_text_tokens
        return text[:end], {"ocr_tokens": len(spans), "ocr_tokens_cut": cut}
