"""ALIGN in the place of a host's connector.

The host's code calls its connector with the vision features alone. The table it needs is lent to it
for the time of the call, so nothing keeps a reference to it (docs/adr/0001).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..connectors import AlignConnector
from ..errors import AlignVLMError

_LENT: ContextVar[nn.Module | None] = ContextVar("lent text embedding", default=None)


@contextmanager
def lent(embedding: nn.Module) -> Iterator[None]:
    """Within, transplanted connectors of this thread mix the table of ``embedding``."""
    token = _LENT.set(embedding)
    try:
        yield
    finally:
        _LENT.reset(token)


def lends_table(get_image_features: Callable[..., Any]) -> Callable[..., Any]:
    """Lend the model's table to its connector while a host's ``get_image_features`` runs."""

    # wraps keeps the signature: generate() reads it to choose which inputs to hand over
    @functools.wraps(get_image_features)
    def lending(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lent(self.get_input_embeddings()):
            return get_image_features(self, *args, **kwargs)

    return lending


class TransplantedConnector(nn.Module):
    """ALIGN with the call of a host's connector: features in, visual tokens out.

    Args:
        config: the converted model's config.
        d_vision: channels of the host's vision features, before the pixel shuffle.
        scale_factor: side of the squares of features that pixel shuffle makes one visual token of
            (transformers ``models/idefics3``); 1: none.
    """

    def __init__(self, config: Any, d_vision: int, scale_factor: int = 1) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.align = AlignConnector(
            config.connector,
            d_vision * scale_factor**2,
            config.text_config.hidden_size,
            config.connector_vocab_size,
        )

    def arrange(
        self, features: Float[Tensor, "tiles patches d_vision"]
    ) -> Float[Tensor, "tiles tokens d_in"]:
        """Features as W1 reads them, one for each visual token.

        Raises:
            AlignVLMError: pixel shuffle of something that is not a square of whole blocks.
        """
        block = self.scale_factor
        if block == 1:
            return features
        side = math.isqrt(features.shape[1])
        if side * side != features.shape[1] or side % block:
            raise AlignVLMError(
                f"{features.shape[1]} features of a tile are not a square that divides by {block}"
            )
        grid = features.unflatten(1, (side // block, block, side // block, block))
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)

    def forward(
        self,
        image_features: Float[Tensor, "tiles patches d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"] | None = None,
    ) -> Float[Tensor, "tiles tokens d_text"]:
        """Visual tokens, Eq. 1-2 of arXiv 2502.01341.

        Args:
            image_features: as the host's vision encoder gives them.
            text_embedding: the table; default: the model's, while it encodes images.

        Raises:
            AlignVLMError: called on its own without a table, or the table lost rows of P_vocab.
        """
        scale = None
        if text_embedding is None:
            embedding = _LENT.get()
            if embedding is None:
                raise AlignVLMError(
                    "a connector called on its own needs text_embedding; or call the model's "
                    "get_image_features"
                )
            text_embedding = embedding.weight  # type: ignore[assignment]
            # a few language models scale inside their embedding module; soft text must match
            scale = getattr(embedding, "embed_scale", None)
        assert text_embedding is not None
        if text_embedding.shape[0] < self.align.vocab_size:
            raise AlignVLMError(
                f"the embedding table has {text_embedding.shape[0]} rows, P_vocab covers "
                f"{self.align.vocab_size}: do not resize the table below that"
            )
        tokens = self.align(self.arrange(image_features)[:, None], text_embedding)
        return tokens if scale is None else tokens * scale

    def top_tokens(
        self, image_features: Float[Tensor, "tiles patches d_vision"], k: int
    ) -> tuple[Float[Tensor, "tiles tokens k"], Int[Tensor, "tiles tokens k"]]:
        """Probabilities and ids of each visual token's ``k`` most probable tokens, best first."""
        return self.align.top_tokens(self.arrange(image_features), k)

    def vocab_distribution(
        self, image_features: Float[Tensor, "tiles patches d_vision"]
    ) -> Float[Tensor, "tiles tokens vocab"]:
        """P_vocab, dense; see :meth:`AlignConnector.vocab_distribution`."""
        return self.align.vocab_distribution(self.arrange(image_features))
