"""The connector contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError
from .configs import ConnectorConfigBase


class VisualTokens(NamedTuple):
    """What :meth:`Connector.read` gives.

    Attributes:
        tokens: visual tokens ``[tiles, n, d_text]``; ``None`` without a table.
        target_log_p: log-probability of each target ``[tiles, n]``; meaningless where there is
            none; ``None`` without targets.
        blank_log_p: of the blank id ``[tiles, n]``, or ``None``.
    """

    tokens: Tensor | None
    target_log_p: Tensor | None = None
    blank_log_p: Tensor | None = None


@contextmanager
def loaded(*modules: nn.Module) -> Iterator[None]:
    """Within, the own weights of these modules can be read without calling them.

    accelerate keeps offloaded weights elsewhere and fetches them for the time of a call.
    """
    hooks = [(m, hook) for m in modules if (hook := getattr(m, "_hf_hook", None)) is not None]
    for module, hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooks:
            hook.post_forward(module, None)


class Connector(nn.Module, ABC):
    """Turns the vision features of each tile into visual tokens of the language model's width.

    Subclasses take ``(config, d_vision, d_text, vocab_size, feature_grid)``, of which they ignore
    what they do not need, and keep no copy of the language model's embedding table: it is passed to
    :meth:`forward`, so tying, saving and sharding stay the language model's business.
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

    def read(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"] | None,
        targets: Int[Tensor, "tiles tokens"] | None = None,
        blank_id: int | None = None,
    ) -> VisualTokens:
        """Visual tokens, and what P_vocab says of the ids asked for.

        Args:
            features: vision features.
            text_embedding: the language model's table, or ``None``: no visual tokens are made.
            targets: language-model id of each visual token, negative: none.
            blank_id: the id whose log-probability is wanted for every visual token.

        Raises:
            ConfigError: ids are asked for, but the connector has no P_vocab.
            ValueError: an id is not among the kept tokens.
        """
        if targets is not None or blank_id is not None or text_embedding is None:
            self._no_p_vocab("a loss on P_vocab")
        return VisualTokens(self(features, text_embedding))

    def prune(self, token_ids: Int[Tensor, " kept"]) -> None:
        """Keep only these language-model ids in P_vocab, in place.

        Raises:
            ConfigError: the connector has no P_vocab.
            ValueError: duplicates, ids out of range, or ids already pruned away.
        """
        self._no_p_vocab("pruning")

    def _no_p_vocab(self, what: str) -> None:
        kind = self.config.type
        raise ConfigError(f"{what} needs the 'align' connector, this model has {kind!r}")

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
