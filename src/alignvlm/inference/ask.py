"""Ask a model about documents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import LogitsProcessor, StoppingCriteria

from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from .generate import generate
from .loading import load_model
from .noise import Noise
from .prompt import build_prompts, chat, encode_pages

__all__ = ["Answer", "ask", "encode_pages", "load_model"]


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer.
        visual_tokens: cells of the pages.
        kept_visual_tokens: those that reached the language model after blank dropping.
        prompt_tokens: length of the whole prompt, as the language model got it; 0 if it was not
            asked.
        new_tokens: tokens generated.
        prefill_ms: from the prompt to the first token, encoder and connector included.
        total_ms: until the last token.
        log_probability: mean over the new tokens, nats; how sure the model was of its words.
    """

    text: str
    visual_tokens: int
    kept_visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    prefill_ms: float
    total_ms: float
    log_probability: float


def ask(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Sequence[Image.Image],
    question: str,
    *,
    max_new_tokens: int = 64,
    encoded: Encoded | None = None,
    noise: Noise | None = None,
    streamer: Any = None,
    stopping: Sequence[StoppingCriteria] = (),
    processors: Sequence[LogitsProcessor] = (),
) -> Answer:
    """Ask one question about some page images; the answer is greedy.

    Where an encoder that reads found nothing on any page, the answer is empty: a language model
    would make one up.

    Args:
        encoded: what :func:`encode_pages` gave for these pages, if they were encoded before.
        noise: on the pages' features, if they were not.
        streamer, stopping, processors: see :func:`alignvlm.inference.generate.generate`.

    Raises:
        DataError: a page cannot be used, or prompt and answer do not fit the language model's
            context.
    """
    start = time.perf_counter()
    prompt = build_prompts(
        model,
        processor,
        [chat(question, pages)],
        max_new_tokens=[max_new_tokens],
        encoded=encoded,
        noise=noise,
    )
    (said,) = generate(
        model,
        processor.tokenizer,
        prompt,
        [max_new_tokens],
        streamer=streamer,
        stopping=stopping,
        processors=processors,
    )
    (unread,) = prompt.unread
    return Answer(
        text=said.text,
        visual_tokens=prompt.visual_tokens[0],
        kept_visual_tokens=prompt.kept_visual_tokens[0],
        prompt_tokens=0 if unread else prompt.lengths[0],
        new_tokens=said.new_tokens,
        prefill_ms=0.0 if unread else (said.begun - start) * 1000,
        total_ms=(time.perf_counter() - start) * 1000,
        log_probability=said.log_probability,
    )
