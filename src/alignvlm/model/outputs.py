"""What the models return, and which images belong to which prompt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils.generic import ModelOutput

from ..errors import AlignVLMError
from .losses import VocabLoss

CACHE = ({"cache", "past_key_values"} & {f.name for f in fields(BaseModelOutputWithPast)}).pop()
"""What transformers calls the key-value cache: ``past_key_values``, from 5.24 on ``cache``."""


class _WithImages(ModelOutput):
    def to_tuple(self) -> tuple:
        values = [getattr(self, key) for key in self.keys()]
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in values)


@dataclass
class AlignVLMModelOutput(_WithImages, BaseModelOutputWithPast):
    """Adds ``image_outputs``, as ``get_image_features`` gives them, ``image_hidden_states`` [sum of
    visual tokens, D] and the loss on P_vocab."""

    image_outputs: BaseModelOutputWithPooling | None = None
    image_hidden_states: Tensor | None = None
    vocab_loss: Tensor | None = None
    vocab_text_loss: Tensor | None = None
    vocab_blank_loss: Tensor | None = None


@dataclass
class AlignVLMCausalLMOutput(_WithImages, CausalLMOutputWithPast):
    """``loss`` is the language-model loss plus the weighted loss on P_vocab, where each is asked
    for; the parts are beside it."""

    image_outputs: BaseModelOutputWithPooling | None = None
    image_hidden_states: Tensor | None = None
    lm_loss: Tensor | None = None
    vocab_loss: Tensor | None = None
    vocab_text_loss: Tensor | None = None
    vocab_blank_loss: Tensor | None = None


class Encoded(NamedTuple):
    """Pages seen by encoder and connector, once: for a prompt, a reading, a citation.

    Attributes:
        features: of the vision encoder, ``[T, r, c, d_vision]``.
        image_grids: int64 ``[images, 3]``, how each image's tiles lie.
        tokens: visual tokens of each image in page order, ``[n_i, D]``.
        blank: bool ``[n_i]``, which of them are blank; ``None`` if blanks are not dropped.
        order: for an encoder that reads: rows of visual tokens in reading order, as indices into
            ``tokens``; the others are blank. ``None``: page order.
        pages: what such an encoder read on each image; else ``None``.
        vocab_loss: the loss on P_vocab, if there were targets.
        rows: where ``tokens`` has only those that are not blank, the row of each of the ``n_i``;
            see :meth:`lean`.
    """

    features: Tensor
    image_grids: Tensor
    tokens: list[Tensor]
    blank: list[Tensor] | None = None
    order: list[list[Tensor]] | None = None
    pages: list[Any] | None = None
    vocab_loss: VocabLoss | None = None
    rows: list[Tensor] | None = None

    @property
    def lengths(self) -> list[int]:
        """Visual tokens of each image, blank ones too."""
        return [len(one) for one in (self.tokens if self.rows is None else self.rows)]

    def lean(self) -> Encoded:
        """What a prompt needs: without features and, where blanks are dropped, without theirs."""
        features = self.features.new_empty(0, *self.features.shape[1:])
        if self.blank is None:
            return self._replace(features=features)
        keep = [~blank[:, 0] for blank in self.blank]
        return self._replace(
            features=features,
            tokens=[tokens[own] for tokens, own in zip(self.tokens, keep, strict=True)],
            rows=[(own.cumsum(0) - 1).clamp_min(0) for own in keep],
        )

    def full(self) -> Encoded:
        """:meth:`lean` taken back: a token for each of the ``n_i``, of blank ones any."""
        if self.rows is None:
            return self
        tokens = [
            own[rows] if len(own) else own.new_zeros(len(rows), own.shape[-1])
            for own, rows in zip(self.tokens, self.rows, strict=True)
        ]
        return self._replace(tokens=tokens, rows=None)

    def visual(self, index: Tensor) -> Tensor:
        """Visual tokens ``[k, D]`` by their numbers in all images together, none of them blank;
        images are not copied into one piece for it."""
        index, start = index.to(self.tokens[0].device), 0
        found = self.tokens[0].new_empty(len(index), self.tokens[0].shape[-1])
        for number, (tokens, length) in enumerate(zip(self.tokens, self.lengths, strict=True)):
            here = (index >= start) & (index < start + length)
            own = index[here] - start
            found[here] = tokens[own if self.rows is None else self.rows[number][own]]
            start += length
        return found

    def image(self, number: int) -> Encoded:
        """One image alone, without its thumbnail."""
        grids = self.image_grids.tolist()
        tiles = [rows * cols + thumbnail for rows, cols, thumbnail in grids]
        start = sum(tiles[:number])
        rows, cols, _ = grids[number]
        grid = self.image_grids.new_tensor([[rows, cols, 0]])
        page = number + sum(thumbnail for *_, thumbnail in grids[:number])
        here = slice(number, number + 1)
        return Encoded(
            features=self.features[start : start + rows * cols],
            image_grids=grid,
            tokens=self.tokens[here],
            blank=self.blank and self.blank[here],
            order=self.order and self.order[here],
            pages=self.pages and self.pages[page : page + 1],
        )


class Merged(NamedTuple):
    """A prompt with its images in it.

    Attributes:
        inputs_embeds: ``[B, L, D]``.
        visual_tokens: of all images, ``[sum n_i, D]``; ``None`` without images.
        vocab_loss: the loss on P_vocab, if there were targets.
        kept: for each prompt the positions that remain once blank visual tokens are dropped, in
            the order in which the language model reads them; ``None`` if none are dropped.
        image: the images as ``get_image_features`` gives them.
    """

    inputs_embeds: Tensor
    visual_tokens: Tensor | None = None
    vocab_loss: VocabLoss | None = None
    kept: list[Tensor] | None = None
    image: BaseModelOutputWithPooling | None = None


def group_images(placeholders: list[int], visual_tokens: list[int]) -> list[range]:
    """The images of each prompt: its placeholders are filled by whole images, in order.

    Args:
        placeholders: placeholder tokens of each prompt.
        visual_tokens: visual tokens of each image.

    Returns:
        For each prompt the range of its images.

    Raises:
        AlignVLMError: they do not match; the sample is named.
    """
    groups, image = [], 0
    for sample, wanted in enumerate(placeholders):
        first, filled = image, 0
        while filled < wanted and image < len(visual_tokens):
            filled += visual_tokens[image]
            image += 1
        if filled != wanted:
            raise AlignVLMError(
                f"sample {sample}: its prompt has {wanted} image placeholders, but its images give "
                f"{filled} visual tokens; build both with the model's own processor and never "
                "truncate inside an image"
            )
        groups.append(range(first, image))
    if image != len(visual_tokens):
        raise AlignVLMError(
            f"{len(visual_tokens) - image} images have no placeholders in any prompt"
        )
    return groups
