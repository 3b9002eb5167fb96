"""Perceiver: the resampler of Flamingo."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .configs import PerceiverConfig
from .connector import Connector


class ResamplerAttention(nn.Module):
    """Latents attend to the features and to themselves (appendix A.1.1 of arXiv 2204.14198).

    ``softmax(q kᵀ / sqrt(head_dim)) v``, with q from LN(latents) and k, v from
    [LN(features), LN(latents)].
    """

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        inner = num_heads * head_dim
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(
        self, media: Float[Tensor, "tiles n width"], latents: Float[Tensor, "tiles m width"]
    ) -> Float[Tensor, "tiles m width"]:
        latents = self.norm_latents(latents)
        source = torch.cat((self.norm_media(media), latents), dim=1)
        q, k, v = self._heads(self.q(latents)), self._heads(self.k(source)), self.v(source)
        mixed = F.scaled_dot_product_attention(q, k, self._heads(v))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class ResamplerLayer(nn.Module):
    """One resampler layer: attention, then a feed-forward, each with a residual."""

    def __init__(self, config: PerceiverConfig, width: int) -> None:
        super().__init__()
        self.attention = ResamplerAttention(width, config.num_heads, config.head_dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.ff_mult * width, bias=False),
            nn.GELU(),
            nn.Linear(config.ff_mult * width, width, bias=False),
        )

    def forward(
        self, media: Float[Tensor, "tiles n width"], latents: Float[Tensor, "tiles m width"]
    ) -> Float[Tensor, "tiles m width"]:
        latents = latents + self.attention(media, latents)
        return latents + self.feed_forward(latents)


class PerceiverConnector(Connector):
    """Perceiver Resampler of Flamingo: a fixed number of learned latents read each tile.

    For each of ``depth`` layers, with l the latents and F the tile's features::

        l ← l + Attention(q = l, k = v = [F, l])      (LayerNorm on F and on l first)
        l ← l + FFW(l)

    ``F' = W LN(l)``    (appendix A.1.1 of arXiv 2204.14198; W, from the encoder's width to the
    language model's, is our addition: Flamingo's cross-attention takes the encoder's width)

    Parameters: ``latents`` [num_latents, d_vision], the layers, ``norm`` and ``w``.
    """

    config: PerceiverConfig

    def __init__(
        self,
        config: PerceiverConfig,
        d_vision: int,
        d_text: int,
        vocab_size: int = 0,
        feature_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.num_latents, d_vision))
        self.layers = nn.ModuleList(ResamplerLayer(config, d_vision) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d_vision)
        self.w = nn.Linear(d_vision, d_text)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.latents, std=0.02)

    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        tiles, *_ = self.check_grid(features)
        media = features.flatten(1, 2)
        latents = self.latents.expand(tiles, -1, -1)
        for layer in self.layers:
            latents = layer(media, latents)
        return self.w(self.norm(latents))
