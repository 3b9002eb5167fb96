"""Ovis: a visual embedding table of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops import vocab_mixture
from .configs import OvisConfig
from .connector import Connector, loaded


class OvisConnector(Connector):
    """Each feature becomes a distribution over learned visual words, which mixes their embeddings.

    ``p = softmax(W F)``,  ``F' = pᵀ E``    (section 3 of arXiv 2405.20797)

    With ``config.layer_norm`` ``p = softmax(LayerNorm(W F))``, as Ovis's released code has it.

    Parameters: ``w`` [visual_vocab, d_vision], ``table`` E [visual_vocab, d_text] and, with
    ``config.layer_norm``, ``norm`` over the visual vocabulary. Unlike ALIGN, E is not the language
    model's table.
    """

    config: OvisConfig

    def __init__(
        self,
        config: OvisConfig,
        d_vision: int,
        d_text: int,
        vocab_size: int = 0,
        feature_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        size = config.visual_vocab_size
        self.w = nn.Linear(d_vision, size, bias=False)
        self.norm = nn.LayerNorm(size, eps=config.eps) if config.layer_norm else None
        self.table = nn.Parameter(torch.empty(size, d_text))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        self.check_grid(features)
        with loaded(*self.children()):
            output = vocab_mixture(
                features.flatten(1, 2),
                self.w.weight,
                self.table,
                norm_weight=None if self.norm is None else self.norm.weight,
                norm_bias=None if self.norm is None else self.norm.bias,
                normalize=self.norm is not None,
                eps=self.config.eps,
                impl=self.config.impl,
                keep_logits_gib=self.config.keep_logits_gib,
            ).output
        assert output is not None
        return output
