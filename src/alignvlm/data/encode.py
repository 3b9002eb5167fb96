"""A conversation becomes ids and a label mask; a page becomes targets for P_vocab."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..connectors import AlignConnector
from ..errors import DataError
from ..model.config import AlignVLMConfig
from ..model.losses import IGNORE
from ..processing.processor import AlignVLMProcessor
from ..tiling import Grid
from .ground import as_words, page_targets, subsample_blanks, tile_targets
from .questions_together import apart, joined
from .records import Record, load_images


class TooLong(DataError):
    """A sample longer than the stage's ``max_length``: it is dropped, never cut."""


class PageBehind(DataError):
    """Questions that cannot share a sample: the chat template puts the page behind each."""


def longest(sample: dict[str, Tensor]) -> Tensor:
    """Bool ``[L]``: what the longest turn of a sample sees, itself included; without ``turn_ids``
    everything. The language model's context must hold no more."""
    turns = sample.get("turn_ids")
    if turns is None:
        return torch.ones_like(sample["input_ids"], dtype=torch.bool)
    counts = torch.bincount(turns)
    return (turns == 0) | (turns == 1 + counts[1:].argmax())


def chat_messages(record: Record) -> list[dict[str, Any]]:
    """The record's messages with its images inside, as ``apply_chat_template`` takes them."""
    images = iter(load_images(record))
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(images)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in record.messages
    ]


def encode(record: Record, processor: AlignVLMProcessor) -> dict[str, Tensor]:
    """Ids, labels and tiles of one record.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` int64 ``[L]`` (-100 outside the assistant's
        turns), and with images ``pixel_values [T, 3, h, w]`` and ``image_grids [images, 3]``; of a
        record with ``independent_turns`` also ``turn_ids [L]``.

    Raises:
        DataError: no assistant turn, or placeholders do not fit; names the record.
    """
    if record.independent_turns:
        sample = joined([encode(one, processor) for one in apart(record)])
        if bool((sample["input_ids"][sample["turn_ids"] > 0] == processor.image_token_id).any()):
            raise PageBehind(f"{record.id}: the chat template puts the page behind the question")
        return sample
    try:
        batch = processor.apply_chat_template(
            [chat_messages(record)],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
        )
    except DataError as error:
        raise DataError(f"{record.id}: {error}") from None
    ids = batch["input_ids"][0]
    mask = torch.as_tensor(batch["assistant_masks"][0], dtype=torch.bool)
    if not bool(mask.any()):
        raise DataError(f"{record.id}: no assistant turn to learn from")
    sample = {
        "input_ids": ids,
        "attention_mask": batch["attention_mask"][0],
        "labels": ids.masked_fill(~mask, IGNORE),
    }
    for key in ("pixel_values", "image_grids"):
        if key in batch:
            sample[key] = batch[key]
    return sample


def encode_fitting(
    record: Record, processor: AlignVLMProcessor, config: AlignVLMConfig, max_length: int
) -> dict[str, Tensor]:
    """:func:`encode`, with the limit on what the language model gets: most placeholders of a page
    may stand for blanks that are dropped before it.

    Raises:
        TooLong: more than ``max_length`` tokens remain; names the record.
    """
    sample = encode(record, processor)
    length = int(longest(sample).sum())
    if length > max_length and config.blank_threshold is not None:
        length = kept_length(sample, record, config, processor.tokenizer)
    if length > max_length:
        raise TooLong(f"{record.id}: {length} tokens, more than max_length={max_length}")
    return sample


def kept_length(
    sample: dict[str, Tensor], record: Record, config: AlignVLMConfig, tokenizer: Any
) -> int:
    """Tokens of a sample of :func:`encode` that blank dropping leaves, as far as it is known
    before the model has read the page: the text, and the cells in which a token of the record's
    words starts. Pages without words count nothing.
    """
    text = int(((sample["input_ids"] != config.image_token_id) & longest(sample)).sum())
    if record.words is None or "image_grids" not in sample:
        return text
    targets = page_vocab_targets(record, sample["image_grids"], config, tokenizer)
    return text + int(((targets >= 0) & (targets != config.blank_token_id)).sum())


def encode_images(record: Record, processor: AlignVLMProcessor) -> dict[str, Tensor]:
    """Only the tiles, for a stage without a language model.

    Raises:
        DataError: the record has no image.
    """
    if not record.images:
        raise DataError(f"{record.id}: has no image, and this stage trains no language model")
    batch = processor.image_processor(load_images(record), return_tensors="pt")
    return {key: batch[key] for key in ("pixel_values", "image_grids")}


def page_vocab_targets(
    record: Record, image_grids: Tensor, config: AlignVLMConfig, tokenizer: Any
) -> Tensor:
    """Targets of all tiles of a record, int64 ``[T, n]``.

    Thumbnails, images without words, and ink that no word explains are not scored.

    Args:
        image_grids: as the image processor returned them.
    """
    tiles = []
    sizes = [] if record.words is None else image_sizes(record)
    for index, (rows, cols, thumbnail) in enumerate(image_grids.tolist()):
        grid = Grid(rows, cols)
        if record.words is None:
            tiles.append(torch.full((grid.tiles, config.tokens_per_tile), IGNORE))
        else:
            words = as_words(record.words[index])
            unread = () if record.unread is None else record.unread[index]
            truth = page_targets(words, sizes[index], grid, config, tokenizer, unread)
            tiles.append(tile_targets(truth.targets, grid))
        if thumbnail:
            tiles.append(torch.full((1, config.tokens_per_tile), IGNORE))
    return torch.cat(tiles)


def image_sizes(record: Record) -> list[tuple[int, int]]:
    """Width and height of each image as the model sees it, turned upright."""
    return [image.size for image in load_images(record)]


def vocab_targets(
    record: Record,
    image_grids: Tensor,
    config: AlignVLMConfig,
    tokenizer: Any,
    connector: AlignConnector,
    *,
    blank_cells: int | None = None,
    seed: int = 0,
) -> Tensor:
    """:func:`page_vocab_targets` for training.

    Tokens that a pruned vocabulary lacks are not scored.

    Args:
        blank_cells: score at most this many blank cells of the record.
        seed: draws them.
    """
    targets = page_vocab_targets(record, image_grids, config, tokenizer)
    targets = targets.masked_fill(~connector.keeps(targets), IGNORE)
    if blank_cells is not None and config.blank_token_id is not None:
        targets = subsample_blanks(targets, config.blank_token_id, blank_cells, seed)
    return targets
