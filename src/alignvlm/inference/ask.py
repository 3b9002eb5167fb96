"""Ask a model about documents."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..compose.assemble import load_pretrained
from ..errors import DataError
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from ..weights.resolve import resolve


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


@dataclass(frozen=True)
class Prompt:
    """A question about pages as the language model gets it.

    Attributes:
        inputs: ``input_ids [1, L]``, ``attention_mask [1, L]`` and, with pages, ``inputs_embeds
            [1, L, d_text]``, after blank dropping; as ``generate`` takes them.
        visual_tokens: cells of the pages.
        kept_visual_tokens: those that remain.
    """

    inputs: dict[str, torch.Tensor]
    visual_tokens: int
    kept_visual_tokens: int

    def __len__(self) -> int:
        return self.inputs["input_ids"].shape[1]


def load_model(
    reference: str | os.PathLike[str], *, dtype: torch.dtype | None = None
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """A trained model and its processor, on the GPU if there is one, ready to be asked.

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
    return model, processor


class _FirstToken:
    """Notes when the first token comes out; a streamer as ``generate`` takes it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def encode_pages(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: list[Image.Image],
) -> Encoded:
    """Pages through encoder and connector, once for whatever is asked, cited or inspected.

    Raises:
        DataError: a page cannot be used.
    """
    batch = processor.image_processor(pages, return_tensors="pt").to(model.device)
    return model.model.encode(batch["pixel_values"], batch["image_grids"])


@torch.inference_mode()
def build_prompt(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: list[Image.Image],
    question: str,
    *,
    max_new_tokens: int = 64,
    encoded: Encoded | None = None,
) -> Prompt:
    """The chat prompt of one question, with its pages' visual tokens in place.

    Args:
        encoded: what :func:`encode_pages` gave for these pages, if they were encoded before.

    Raises:
        DataError: a page cannot be used, or prompt and answer do not fit the language model's
            context.
    """
    content: list[dict[str, Any]] = [{"type": "image", "image": page} for page in pages]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    batch = processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    return compact(model, processor, batch, max_new_tokens, encoded)


def compact(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    batch: Any,
    max_new_tokens: int = 0,
    encoded: Encoded | None = None,
) -> Prompt:
    """What the processor made of one text, after blank dropping; see :func:`build_prompt`."""

    def visual(ids: torch.Tensor) -> int:
        return int((ids == processor.image_token_id).sum())

    inputs = dict(batch)
    if model.config.blank_threshold is None:  # known before the pages are encoded
        _check_context(model, batch["input_ids"].shape[1], max_new_tokens)
    if encoded is not None and "pixel_values" in batch:
        inputs = model.compact_prompt(
            batch["input_ids"], attention_mask=batch["attention_mask"], encoded=encoded
        )
    elif "pixel_values" in batch:
        inputs = model.compact_prompt(**batch)
    _check_context(model, inputs["input_ids"].shape[1], max_new_tokens)
    return Prompt(inputs, visual(batch["input_ids"]), visual(inputs["input_ids"]))


def _check_context(model: AlignVLMForConditionalGeneration, prompt: int, new: int) -> None:
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    if limit is not None and prompt + new > limit:
        raise DataError(
            f"the prompt has {prompt} tokens and the answer up to {new}, but the language model "
            f"reads {limit}: ask about fewer pages (--pages) or one at a time (--each)"
        )


def ask(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: list[Image.Image],
    question: str,
    *,
    max_new_tokens: int = 64,
    encoded: Encoded | None = None,
    **generation: Any,
) -> Answer:
    """Ask one question about some page images; greedy unless ``generation`` says otherwise.

    Where an encoder that reads found nothing on any page, the answer is empty: a language model
    would make one up.

    Args:
        encoded: what :func:`encode_pages` gave for these pages, if they were encoded before.

    Raises:
        DataError: see :func:`build_prompt`.
    """
    start = time.perf_counter()
    clock = _FirstToken()
    if encoded is None and pages:
        encoded = encode_pages(model, processor, pages)
    if encoded is not None and encoded.pages and not any(map(len, encoded.pages)):
        cells = sum(map(len, encoded.tokens))
        return Answer("", cells, 0, 0, 0, 0.0, (time.perf_counter() - start) * 1000, 0.0)
    prompt = build_prompt(
        model, processor, pages, question, max_new_tokens=max_new_tokens, encoded=encoded
    )
    with torch.inference_mode():
        output = model.generate(
            **prompt.inputs,
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, "streamer": clock, **generation},
            return_dict_in_generate=True,
            output_scores=True,
        )
    end = time.perf_counter()
    beams = getattr(output, "beam_indices", None)
    scores = model.compute_transition_scores(
        output.sequences, output.scores, beams, normalize_logits=beams is None
    )
    new = output.sequences[0, len(prompt) :]
    # the streamer is first given the prompt, then each token
    first = clock.times[1] if len(clock.times) > 1 else end
    return Answer(
        text=processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        visual_tokens=prompt.visual_tokens,
        kept_visual_tokens=prompt.kept_visual_tokens,
        prompt_tokens=len(prompt),
        new_tokens=len(new),
        prefill_ms=(first - start) * 1000,
        total_ms=(end - start) * 1000,
        log_probability=scores[0, : len(new)].float().mean().item(),
    )
