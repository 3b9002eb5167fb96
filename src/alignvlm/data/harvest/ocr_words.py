"""Text found on a page image by OCR: boxes, lines, and RapidOCR.

`RapidOCR <https://github.com/RapidAI/RapidOCR>`_ with the models of its wheel (PP-OCR, Apache-2.0),
``pip install 'alignvlm[ocr]'``; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ...errors import ConfigError
from ...processing.image_processor import to_rgb


class Box(NamedTuple):
    """A piece of text that was found.

    Attributes:
        text: what it says.
        x0, y0, x1, y1: upright box in px.
        confidence: of the recogniser, 0 to 1.
    """

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    confidence: float = 1.0


Reader = Callable[[Image.Image], list[Box]]


def text_lines(boxes: Sequence[Box]) -> list[list[Box]]:
    """Boxes line by line, from top to bottom and from left to right.

    A box joins a line if the middle of its height lies within that line's first box, or the other
    way round.
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
    return [sorted(line, key=lambda box: box.x0) for line in lines]


def ocr_text(boxes: Sequence[Box]) -> str:
    """The text of a page, its :func:`text_lines` as lines.

    Gaps wider than two letters become two spaces, so table columns stay apart.
    """
    return "\n".join(map(_line, text_lines(boxes)))


def _line(boxes: list[Box]) -> str:
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
            from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]

            names = ("rapidocr", "onnxruntime")
            self.engine = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        except (ImportError, metadata.PackageNotFoundError):
            raise ConfigError(
                "OCR needs rapidocr and onnxruntime: pip install 'alignvlm[ocr]'"
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
        scores = found.scores or [1.0] * len(found.txts)
        return [
            Box(text, *corners.min(0).tolist(), *corners.max(0).tolist(), float(score))
            for text, corners, score in zip(found.txts, found.boxes, scores, strict=True)
        ]
