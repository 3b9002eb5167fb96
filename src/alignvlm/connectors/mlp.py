"""MLP: the connector of LLaVA-1.5."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from .configs import MLPConfig
from .connector import Connector


class MLPConnector(Connector):
    """Two linear layers with an exact GELU between, on each feature alone.

    ``F'[n] = W2 GELU(W1 F[n] + b1) + b2``    (LLaVA-1.5, section 3.3 of arXiv 2310.03744)

    Parameters: ``w1`` [hidden, d_vision] with bias, ``w2`` [d_text, hidden] with bias, where
    ``hidden`` is ``config.hidden_size`` or the language model's width.
    """

    config: MLPConfig

    def __init__(
        self,
        config: MLPConfig,
        d_vision: int,
        d_text: int,
        vocab_size: int = 0,
        feature_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size or d_text
        self.w1 = nn.Linear(d_vision, hidden)
        self.act = nn.GELU()
        self.w2 = nn.Linear(hidden, d_text)

    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        self.check_grid(features)
        return self.w2(self.act(self.w1(features.flatten(1, 2))))
