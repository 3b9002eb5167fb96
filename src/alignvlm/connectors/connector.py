"""The connector contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn

from .configs import ConnectorConfigBase


class Connector(nn.Module, ABC):
    """Turns the vision features of each tile into visual tokens of the language model's width.

    Subclasses take ``(config, d_vision, d_text, vocab_size)`` and keep no copy of the language
    model's embedding table: it is passed to :meth:`forward`, so tying, saving and sharding stay
    the language model's business. Connectors that do not use it ignore it.
    """

    config: ConnectorConfigBase

    @abstractmethod
    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        """Visual tokens, ``config.num_tokens(rows, cols)`` for each tile.

        Raises:
            ValueError: ``features`` is not a 4-D grid.
        """

    def features_of(
        self,
        ids: Int[Tensor, "n k"],
        q: Float[Tensor, "n k"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "n d_vision"]:
        """Features that say tokens, for an encoder that reads (:mod:`alignvlm.reader`).

        Here the text embeddings' mean by ``q``; a connector whose weights tell which features make
        it say a token gives those.

        Args:
            ids: candidates of each place, -1 where there are fewer than ``k``.
            q: their probabilities, the largest first; gradients flow through them.
        """
        rows = text_embedding[ids.clamp_min(0).to(text_embedding.device)]
        return (rows * q.to(rows)[..., None]).sum(1)

    def reset_parameters(self) -> None:
        """Initialise parameters that are not inside standard layers. Default: nothing to do."""

    @staticmethod
    def check_grid(features: Tensor) -> tuple[int, int, int, int]:
        """Return ``tiles, rows, cols, d_vision`` or raise."""
        if features.ndim != 4:
            raise ValueError(
                f"features must be [tiles, rows, cols, d_vision], got {tuple(features.shape)}"
            )
        tiles, rows, cols, width = features.shape
        return tiles, rows, cols, width
