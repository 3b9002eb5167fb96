"""From questions and pages to what the language model gets: encode, write the chat, check lengths.

Pages are cut and encoded once; a prompt's placeholders come from their grids, so that pages which
were encoded before are not cut again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from ..processing.verbatim import hidden, tokenized, wrapped
from ..tiling import Grid
from .noise import Noise, noisy

Chat = list[dict[str, Any]]
"""Messages of one conversation: each a ``role`` and a ``content`` of texts and images."""


USUAL_TOKEN = 16
"""Characters; where a text has more for each token of the context, they are counted first."""


class ContextError(DataError):
    """A prompt that leaves no room for its answer.

    Attributes:
        tokens: of the prompt.
        limit: tokens of prompt and answer together that the language model reads.
    """

    def __init__(self, name: str, tokens: int, new: int, limit: int) -> None:
        super().__init__(
            f"{name and f'{name}: '}the prompt has {tokens} tokens and the answer up to {new}, but "
            f"the language model reads {limit}: ask about fewer pages together (ask: --pages, "
            "--each)"
        )
        self.tokens, self.limit = tokens, limit


@dataclass(frozen=True)
class Prompt:
    """Prompts as the language model gets them, after blank dropping; one or many.

    Attributes:
        inputs: ``input_ids [B, L]``, ``attention_mask [B, L]`` (padded on the left) and, where
            there are pages, ``inputs_embeds [B, L, d_text]``; as ``generate`` takes them.
        lengths: tokens of each prompt.
        room: tokens that each prompt's answer may have; ``sys.maxsize`` without a known limit.
        visual_tokens: cells of each prompt's pages.
        kept_visual_tokens: those that remain.
        unread: whether an encoder that reads found nothing on any of a prompt's pages. Such a
            prompt's answer is empty: a language model would make one up.
    """

    inputs: dict[str, Tensor]
    lengths: list[int]
    room: list[int]
    visual_tokens: list[int]
    kept_visual_tokens: list[int]
    unread: list[bool]

    @classmethod
    def of_text(
        cls, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]
    ) -> Prompt:
        """Prompts without pages, of unknown limit."""
        count = len(input_ids)
        return cls(
            {"input_ids": input_ids, "attention_mask": attention_mask},
            attention_mask.sum(-1).tolist(),
            [sys.maxsize] * count,
            [0] * count,
            [0] * count,
            [False] * count,
        )


def chat(question: str, pages: Sequence[Image.Image]) -> Chat:
    """One question about some pages: the pages first."""
    images = [{"type": "image", "image": page} for page in pages]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


@torch.inference_mode()
def encode_pages(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Sequence[Image.Image],
    *,
    noise: Noise | None = None,
) -> Encoded:
    """Pages through encoder and connector, once for whatever is asked, cited or inspected.

    Args:
        noise: on their features; one seed for all of them together.

    Raises:
        DataError: a page cannot be used.
    """
    batch = processor.image_processor(list(pages), return_tensors="pt").to(model.device)
    return _encode(model, batch, [len(pages)], noise)


def _encode(
    model: AlignVLMForConditionalGeneration, batch: Any, counts: list[int], noise: Noise | None
) -> Encoded:
    pixels, grids = batch["pixel_values"], batch["image_grids"]
    with noisy(model.model, noise, grids, counts):
        return model.model.encode(pixels, grids)


def together(parts: Sequence[Encoded]) -> Encoded:
    """Pages that were encoded apart, as if they had been encoded together."""

    def joined(lists: list[list[Any] | None]) -> list[Any] | None:
        return None if lists[0] is None else [one for part in lists for one in part or []]

    return Encoded(
        features=torch.cat([part.features for part in parts]),
        image_grids=torch.cat([part.image_grids for part in parts]),
        tokens=[tokens for part in parts for tokens in part.tokens],
        blank=joined([part.blank for part in parts]),
        order=joined([part.order for part in parts]),
        pages=joined([part.pages for part in parts]),
        rows=joined([part.rows for part in parts]),
    )


def build_prompts(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    chats: Sequence[Chat],
    *,
    max_new_tokens: Sequence[int] | None = None,
    names: Sequence[str] = (),
    encoded: Encoded | None = None,
    noise: Noise | None = None,
) -> Prompt:
    """Chats up to the mark after which their answers start, with their pages' visual tokens.

    Args:
        max_new_tokens: of each answer, for which there must be room; ``None``: not checked.
        names: of the chats, for errors.
        encoded: all chats' pages one after another as :func:`encode_pages` gave them, if they were
            encoded before.
        noise: on the features of pages that were not; a seed for each chat.

    Raises:
        DataError: a page cannot be used.
        ContextError: prompt and answer do not fit the language model's context.
    """
    tokenizer = processor.tokenizer
    marked = [wrapped(one, tokenizer) for one in chats]
    texts = processor.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    texts = [hidden(text, tokenizer) for text in texts]
    pages = [
        [part["image"] for message in one for part in message["content"] if part["type"] == "image"]
        for one in chats
    ]
    return fill_texts(
        model,
        processor,
        texts,
        pages,
        max_new_tokens=max_new_tokens,
        names=names,
        encoded=encoded,
        noise=noise,
    )


@torch.inference_mode()
def fill_texts(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    texts: list[str],
    pages: list[list[Image.Image]],
    *,
    max_new_tokens: Sequence[int] | None = None,
    names: Sequence[str] = (),
    encoded: Encoded | None = None,
    noise: Noise | None = None,
    special_tokens: bool = True,
) -> Prompt:
    """Texts with a placeholder for each of their pages; see :func:`build_prompts`.

    Args:
        special_tokens: the tokenizer may begin a text as it does, where the text does not.
    """
    images = [page for own in pages for page in own]
    processor.validate_inputs(images=pages if images else None, text=texts)
    batch: Any = {} if encoded is None else {"image_grids": encoded.image_grids}
    if encoded is None and images:
        batch = processor.image_processor(images, return_tensors="pt").to(model.device)
    grids = batch["image_grids"].tolist() if batch else []
    written = [processor.placeholders(Grid(rows, cols), bool(small)) for rows, cols, small in grids]
    _check_characters(model, processor, texts, max_new_tokens, names)
    tokens = _tokenized(processor, texts, written, special_tokens)
    inputs = {key: tokens[key].to(model.device) for key in ("input_ids", "attention_mask")}
    counts = [len(own) for own in pages]
    spans = list(pairwise(accumulate(counts, initial=0)))
    lengths, visual = _lengths(processor, inputs)
    sure = lengths  # known before the pages are encoded
    if model.config.blank_threshold is not None:  # what blank dropping may take away
        ends = [sum(text.count("\n") for text in written[a:b]) for a, b in spans]
        sure = [n - cells - end for n, cells, end in zip(lengths, visual, ends, strict=True)]
    _check_context(model, sure, max_new_tokens, names)
    kept, unread = visual, [False] * len(texts)
    if images:
        if encoded is None:
            encoded = _encode(model, batch, counts, noise)
        inputs = model.compact_prompt(**inputs, encoded=encoded)
        lengths, kept = _lengths(processor, inputs)
        _check_context(model, lengths, max_new_tokens, names)
        unread = [_unread(encoded, *span) for span in spans]
    room = [context_length(model) - length for length in lengths]
    return Prompt(inputs, lengths, room, visual, kept, unread)


def _tokenized(
    processor: AlignVLMProcessor, texts: list[str], written: list[str], special_tokens: bool
) -> Any:
    """Texts with what their pages' placeholders grow to, as token ids padded on the left."""
    left, whole = iter(written), []
    for text in texts:
        head, *parts = text.split(processor.image_token)
        whole.append(head + "".join(next(left) + part for part in parts))
    begin = processor.tokenizer.bos_token
    if begin is not None and texts[0].startswith(begin):
        special_tokens = False  # the chat template wrote it; Llama's tokenizer would add another
    # verbose would count cells that blank dropping takes away
    return tokenized(processor.tokenizer, whole, add_special_tokens=special_tokens, verbose=False)


def _lengths(
    processor: AlignVLMProcessor, inputs: dict[str, Tensor]
) -> tuple[list[int], list[int]]:
    """Tokens and visual tokens of each prompt; padding may point at placeholders."""
    mask = inputs["attention_mask"].bool()
    visual = (inputs["input_ids"] == processor.image_token_id) & mask
    return mask.sum(-1).tolist(), visual.sum(-1).tolist()


def context_length(model: AlignVLMForConditionalGeneration) -> int:
    """Tokens of prompt and answer together; ``sys.maxsize`` where the config names no limit."""
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    return sys.maxsize if limit is None else limit


def _check_context(
    model: AlignVLMForConditionalGeneration,
    lengths: list[int],
    max_new_tokens: Sequence[int] | None,
    names: Sequence[str],
) -> None:
    limit = context_length(model)
    for row, new in enumerate(max_new_tokens or ()):
        if lengths[row] + new > limit:
            raise ContextError(names[row] if names else "", lengths[row], new, limit)


def _check_characters(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    texts: list[str],
    max_new_tokens: Sequence[int] | None,
    names: Sequence[str],
) -> None:
    """Megabytes of text, whose tokens would take gigabytes, are refused before they are tokenized:
    with the fewest tokens that they can be."""
    if max_new_tokens is None or max(map(len, texts)) <= USUAL_TOKEN * context_length(model):
        return
    longest = max(USUAL_TOKEN, *map(len, processor.tokenizer.get_vocab()))
    fewest = [len(text) // longest for text in texts]
    _check_context(model, fewest, max_new_tokens, names)


def _unread(encoded: Encoded, first: int, end: int) -> bool:
    """Whether an encoder that reads found nothing on these images, of which there are some."""
    if encoded.pages is None or first == end:
        return False
    small = encoded.image_grids[:, 2].tolist()  # a thumbnail is a page of its own
    pages = encoded.pages[first + sum(small[:first]) : end + sum(small[:end])]
    return not any(map(len, pages))
