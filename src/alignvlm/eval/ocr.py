"""The rival without a connector: OCR, then the same language model on the text it read.

The reader is in :mod:`alignvlm.data.harvest.ocr_words`; training data is made with it as well.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from ..data.harvest.ocr_words import Box, RapidOcrReader, Reader, ocr_text
from ..errors import ConfigError
from ..inference.answerers import LanguageModel, Query, Reply
from .shown import pages_sha256

__all__ = ["MAX_TEXT_TOKENS", "Box", "OcrAnswerer", "RapidOcrReader", "ocr_text"]

MAX_TEXT_TOKENS = 1_536
"""Default limit of the pages' text: three dense pages, and within every context we know."""


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
        self._texts: dict[str, str] = {}

    def settings(self) -> dict[str, Any]:
        engine = getattr(self.reader, "engine", "custom")
        own = {"ocr": engine, "max_text_tokens": self.max_text_tokens}
        return {**own, **self.language.settings(self.repetition_guard)}

    def answer(self, queries: list[Query]) -> list[Reply]:
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
        key = pages_sha256([page])
        if key not in self._texts:
            self._texts[key] = ocr_text(self.reader(page))
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
