"""Pages as prompt embeddings: what a server of the bare language model can answer from.

With blank dropping a page is a short run of soft tokens. A server that takes prompt embeddings,
such as vLLM with ``--enable-prompt-embeds``, needs only the language model then: encoder and
connector run here. docs/embed.md says how they are sent.
"""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import ConfigError
from ..files import replacing
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from .prompt import Prompt, build_prompts, chat, fill_texts

FORMATS = ("safetensors", "pt", "vllm-chat")
TENSOR_FORMATS = FORMATS[:2]


@dataclass(frozen=True)
class PromptEmbeds:
    """Inputs of the bare language model.

    Attributes:
        embeds: float32 ``[tokens, d_text]`` on the CPU.
        visual_tokens: cells of the pages.
        kept_visual_tokens: those among ``embeds``; the others were blank.
    """

    embeds: Float[Tensor, "tokens d_text"]
    visual_tokens: int
    kept_visual_tokens: int


def embed_pages(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: list[Image.Image],
) -> PromptEmbeds:
    """The soft tokens of pages alone, with the newlines that end their rows; a newline between
    pages. No chat template, no beginning-of-text token.

    Raises:
        DataError: a page cannot be used, or they do not fit the language model's context.
    """
    text = "\n".join([processor.image_token] * len(pages))
    return _embeds(
        fill_texts(model, processor, [text], [pages], max_new_tokens=[0], special_tokens=False)
    )


def embed_prompt(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: list[Image.Image],
    question: str,
) -> PromptEmbeds:
    """The whole chat prompt of :func:`alignvlm.inference.ask.ask`: pages, question and the mark
    after which the answer starts. The bare language model continues it with the answer.

    Raises:
        DataError: see :func:`alignvlm.inference.prompt.build_prompts`.
    """
    return _embeds(build_prompts(model, processor, [chat(question, pages)], max_new_tokens=[1]))


def _embeds(prompt: Prompt) -> PromptEmbeds:
    embeds = prompt.inputs["inputs_embeds"][0].float().cpu().contiguous()
    return PromptEmbeds(embeds, prompt.visual_tokens[0], prompt.kept_visual_tokens[0])


def bare_language_model(model: AlignVLMForConditionalGeneration) -> PreTrainedModel:
    """The language model with its head, as transformers and servers know it; it shares the
    weights. Where training changed the language model, this is what must be served. ``model``'s own
    answers take longer afterwards: its weights are laid out as they are stored."""
    model.unhasten()
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(model.config.text_config, trust_remote_code=False)
    bare.set_output_embeddings(model.lm_head)
    setattr(bare, bare.base_model_prefix, model.model.language_model)
    bare.generation_config = model.generation_config
    return bare.eval()


def to_bytes(
    embeds: Float[Tensor, "tokens d_text"],
    format: str = "pt",
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A file of prompt embeddings.

    Args:
        format: ``safetensors`` (a tensor ``prompt_embeds`` and the metadata) or ``pt`` (the plain
            tensor as ``torch.save`` writes it, as vLLM takes it; without metadata).

    Raises:
        ConfigError: another format.
    """
    if format == "safetensors":
        return save({"prompt_embeds": embeds}, metadata)
    if format != "pt":
        raise ConfigError(f"unknown format {format!r}: choose one of {', '.join(TENSOR_FORMATS)}")
    buffer = io.BytesIO()
    torch.save(embeds.clone(), buffer)  # a view would be saved with all it is a view of
    return buffer.getvalue()


def to_base64(embeds: Float[Tensor, "tokens d_text"]) -> str:
    """The value of ``prompt_embeds`` in a request to vLLM's OpenAI server."""
    return base64.b64encode(to_bytes(embeds)).decode("ascii")


def to_chat(embeds: Float[Tensor, "tokens d_text"], question: str | None = None) -> dict[str, Any]:
    """Pages of :func:`embed_pages` for vLLM's chat API, which puts the chat template around them.

    Returns:
        The content part of a message; with a question the fields of a request: ``messages`` of one
        message, the part and the question. Joined by a newline, as vLLM joins parts for templates
        that take text, they are the prompt of :func:`embed_prompt`.
    """
    part = {"type": "prompt_embeds", "data": to_base64(embeds)}
    if question is None:
        return part
    content = [part, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}]}


def write_embeds(
    embeds: Float[Tensor, "tokens d_text"],
    path: str | os.PathLike[str],
    format: str = "safetensors",
    metadata: dict[str, str] | None = None,
) -> None:
    """Write :func:`to_bytes`, whole or not at all."""
    path = Path(path)
    data = to_bytes(embeds, format, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)
