"""An alignvlm model as VLMEvalKit's model class; docs/harnesses.md says how to enter it there.

Contract of VLMEvalKit (commit e8e78f0): ``BaseModel`` in ``vlmeval/vlm/base.py``. All answering is
:class:`~alignvlm.inference.answerers.ModelAnswerer`'s.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image

from ..errors import ConfigError, DataError
from ..inference.answerers import ModelAnswerer, Query
from ..inference.loading import default_device, load_model

try:
    from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "vlmeval":
        raise
    BaseModel = object  # the functions of this module work without it

DEFAULT_NEW_TOKENS = 128
"""For benchmarks that do not say how long an answer may be; none of VLMEvalKit's does."""
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_answerer(
    pretrained: str | os.PathLike[str],
    device: str | None = None,
    dtype: str = "auto",
    repetition_guard: bool = False,
) -> ModelAnswerer:
    """A saved model, ready to answer.

    Args:
        pretrained: anything :func:`alignvlm.weights.resolve.resolve` takes.
        device: default: the process's own GPU if there is one.
        dtype: a key of ``DTYPES``; ``auto``: bfloat16 on a GPU that has it, else float32.
        repetition_guard: end an answer that goes round in circles.

    Raises:
        ConfigError: no such dtype.
        WeightsError: no such model.
    """
    if device is None:
        device = default_device().type
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    model, processor = load_model(pretrained, dtype=DTYPES[dtype], device=device)
    return ModelAnswerer(model, processor, repetition_guard=repetition_guard)


def read_message(message: list[dict[str, Any]], where: str) -> tuple[list[Image.Image], str]:
    """Pages and prompt of a VLMEvalKit message, dicts with ``type`` and ``value``.

    The model reads its pages first and then one text; texts are joined by a newline.

    Raises:
        DataError: an image file that cannot be opened.
    """
    pages, texts = [], []
    for part in message:
        if part["type"] == "text":
            texts.append(part["value"])
            continue
        try:
            with Image.open(part["value"]) as image:
                pages.append(image.convert("RGB"))
        except OSError as error:
            raise DataError(f"{where}: {part['value']}: no usable image: {error}") from None
    return pages, "\n".join(texts)


class VLMEvalKitModel(BaseModel):  # pyright: ignore[reportGeneralTypeIssues]
    """``VLMEvalKitModel(model_path)``, as VLMEvalKit's tables and config files make it."""

    INTERLEAVE = True
    allowed_types = ["text", "image"]

    def __init__(
        self,
        model_path: str,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        device: str | None = None,
        dtype: str = "auto",
        repetition_guard: bool = False,
    ) -> None:
        super().__init__()
        self.max_new_tokens = max_new_tokens
        self.answerer = load_answerer(model_path, device, dtype, repetition_guard)

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer to a message that ``BaseModel.generate`` has checked."""
        where = dataset or "message"
        pages, prompt = read_message(message, where)
        query = Query(where, pages=pages, prompt=prompt, max_new_tokens=self.max_new_tokens)
        return self.answerer.answer([query])[0].text
