"""Which part of the vocabulary a model uses on pages."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from ..connectors import AlignConnector
from ..errors import ConfigError
from ..model.config import AlignVLMConfig
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor

ROWS = 64
"""Visual tokens whose dense distribution is held at once."""


@torch.no_grad()
def top_vocabulary(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Iterable[Image.Image],
    k: int,
) -> Int[Tensor, " k"]:
    """The ``k`` ids with the most probability in P_vocab summed over the pages' visual tokens.

    What ``model.model.prune_vocabulary`` takes: int64, ascending. The blank id is among them
    whatever its share, since blank dropping asks for it.

    Raises:
        ConfigError: no P_vocab (another connector than ALIGN), no page, or ``k`` is not between 1
            and the vocabulary's size.
    """
    align = prunable(model, k)
    blank = model.config.blank_token_id
    mass = vocabulary_mass(model, processor, pages)
    return most_used(align, mass, k, [] if blank is None else [blank])


def prunable(model: AlignVLMForConditionalGeneration, k: int) -> AlignConnector:
    """The model's connector, if P_vocab can be pruned to ``k`` ids.

    Raises:
        ConfigError: it cannot.
    """
    align = model.model.connector
    if not isinstance(align, AlignConnector):
        raise ConfigError(
            f"only the 'align' connector has a vocabulary to prune; this model has "
            f"{model.config.connector.type!r}"
        )
    size = align.w2.out_features
    if not 1 <= k <= size:
        before = f": {align.vocab_size} were pruned to {size} before"
        left = "" if align.token_ids is None else before
        raise ConfigError(f"cannot keep {k} of {size} vocabulary ids{left}")
    return align


@torch.no_grad()
def vocabulary_mass(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Iterable[Image.Image],
) -> Float[Tensor, " vocab"]:
    """P_vocab summed over the pages' visual tokens; float64, on the CPU.

    Raises:
        ConfigError: no page.
    """
    align = model.model.connector
    mass = torch.zeros(align.vocab_size, dtype=torch.float64)
    tokens = 0
    for page in pages:
        features = page_features(model, processor, page)
        mass += features_mass(align, features)
        tokens += len(features)
    if not tokens:
        raise ConfigError("no page to choose the vocabulary by")
    return mass


@torch.no_grad()
def features_mass(
    align: AlignConnector, features: Float[Tensor, "n d_vision"]
) -> Float[Tensor, " vocab"]:
    """P_vocab summed over some features' visual tokens; float64, on the CPU."""
    # float64: the ranking does not depend on how the sum is cut
    mass = torch.zeros(align.vocab_size, dtype=torch.float64)
    for block in features.split(ROWS):
        mass += align.vocab_distribution(block).sum(0).double().cpu()
    return mass


def page_features(
    model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor, page: Image.Image
) -> Float[Tensor, "n d_vision"]:
    """Vision features of a page's visual tokens."""
    batch = processor.image_processor([page], return_tensors="pt")
    pixels = batch["pixel_values"].to(model.device)
    return model.model.encode_tiles(pixels, batch["image_grids"]).flatten(0, 2)


def most_used(
    align: AlignConnector, mass: Float[Tensor, " vocab"], k: int, always: Iterable[int] = ()
) -> Int[Tensor, " k"]:
    """The ``k`` ids with the most mass, ascending; ids in ``always`` first, if P_vocab has them."""
    mass = mass.clone()
    if align.token_ids is not None:  # pruned before: only what is left can be kept
        gone = torch.ones_like(mass, dtype=torch.bool)
        gone[align.token_ids.cpu()] = False
        mass[gone] = -1
    for index in always:
        if mass[index] >= 0:
            mass[index] = torch.inf
    return torch.sort(mass.topk(k).indices).values


def spelling_ids(config: AlignVLMConfig, tokenizer: Any) -> list[int]:
    """Ids without which P_vocab could not say everything a page may hold, ascending.

    The blank id (a single space), the newline that ends a row, and every token of a single byte:
    a character of byte-level BPE's alphabet, or ``<0x41>`` of a SentencePiece vocabulary.
    """
    alphabet = set(ByteLevel.alphabet())
    newline = tokenizer.encode("\n", add_special_tokens=False)
    blank = [] if config.blank_token_id is None else [config.blank_token_id]
    special = set(tokenizer.all_special_ids)
    single = [
        index
        for token, index in tokenizer.get_vocab().items()
        if (token in alphabet or re.fullmatch("<0x[0-9A-Fa-f]{2}>", token)) and index not in special
    ]
    wanted = {*blank, *newline, *single}
    return sorted(index for index in wanted if index < config.connector_vocab_size)


@contextmanager
def pruned_to(model: AlignVLMForConditionalGeneration, ids: Int[Tensor, " k"]) -> Iterator[None]:
    """Prune P_vocab to these ids while the context is open; see ``AlignConnector.prune``.

    Raises:
        ConfigError: ids that cannot be kept.
    """
    core, config = model.model, model.config.connector_config
    whole = core.connector
    core.connector = copy.deepcopy(whole)
    try:
        try:
            core.prune_vocabulary(ids)
        except ValueError as error:
            raise ConfigError(f"cannot prune: {error}") from None
        yield
    finally:
        core.connector, model.config.connector_config = whole, config
