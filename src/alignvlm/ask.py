"""Ask a model about documents."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .compose import load_pretrained
from .connectors import AlignConnector
from .generation import AlignVLMForConditionalGeneration
from .hub import resolve
from .processor import AlignVLMProcessor


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer.
        visual_tokens: cells of the pages.
        kept_visual_tokens: those that reached the language model after blank dropping.
        prompt_tokens: length of the whole prompt, as the language model got it.
        new_tokens: tokens generated.
        prefill_ms: from the prompt to the first token, encoder and connector included.
        total_ms: until the last token.
    """

    text: str
    visual_tokens: int
    kept_visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    prefill_ms: float
    total_ms: float


def load_model(
    reference: str | os.PathLike[str], *, dtype: torch.dtype | None = None
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """A trained model and its processor, on the GPU if there is one, ready to be asked.

    In fp32 an ALIGN connector is folded (:meth:`AlignConnector.fold`): the same answers, a few per
    cent sooner. Such a model can be neither trained nor saved; for that load it with
    ``AutoModelForImageTextToText.from_pretrained``.

    Args:
        reference: folder or hub id.
        dtype: of the weights; default: bf16 on a GPU that has it, else fp32.

    Raises:
        WeightsError: no such model, corrupt files, or another kind of model.
    """
    folder = resolve(reference)
    on_gpu = torch.cuda.is_available()
    if dtype is None:
        dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    model, processor = load_pretrained(folder, dtype)
    model.eval().to("cuda" if on_gpu else "cpu")
    connector = model.model.connector
    # in half precision folding would round W2 once more
    foldable = isinstance(connector, AlignConnector) and connector.config.outer_norm
    if foldable and dtype == torch.float32:
        connector.requires_grad_(False).fold()
    return model, processor


class _FirstToken:
    """Notes when the first token comes out; a streamer as ``generate`` takes it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def ask(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: list[Image.Image],
    question: str,
    *,
    max_new_tokens: int = 64,
    **generation: Any,
) -> Answer:
    """Ask one question about some page images; greedy unless ``generation`` says otherwise.

    Raises:
        DataError: a page cannot be used.
    """
    content: list[dict[str, Any]] = [{"type": "image", "image": page} for page in pages]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    start = time.perf_counter()
    batch = processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    clock = _FirstToken()
    with torch.inference_mode():
        visual = int((batch["input_ids"] == processor.image_token_id).sum())
        prompt = dict(batch)
        if "pixel_values" in batch:
            prompt = model.compact_prompt(**batch)
        output = model.generate(
            **prompt,
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, "streamer": clock, **generation},
        )
    end = time.perf_counter()
    length = prompt["input_ids"].shape[1]
    new = output[0, length:]
    # the streamer is first given the prompt, then each token
    first = clock.times[1] if len(clock.times) > 1 else end
    return Answer(
        text=processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        visual_tokens=visual,
        kept_visual_tokens=int((prompt["input_ids"] == processor.image_token_id).sum()),
        prompt_tokens=length,
        new_tokens=len(new),
        prefill_ms=(first - start) * 1000,
        total_ms=(end - start) * 1000,
    )
