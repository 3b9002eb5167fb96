"""C-Abstractor: the connector of Honeybee."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .configs import CAbstractorConfig
from .connector import Connector

SE_RATIO = 0.25
"""Channels of a block's squeeze-and-excitation, as a share of the block's input channels."""


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """``x · σ(W2 SiLU(W1 mean(x) + b1) + b2)``, one gate per channel (arXiv 1709.01507)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Bottleneck(nn.Module):
    """RegNet's residual block with a bottleneck ratio of 1 and depthwise 3x3 (arXiv 2003.13678).

    ``SiLU(shortcut(x) + LN C3 SE(SiLU LN C2 SiLU LN C1 x))``, C1 and C3 1x1, C2 depthwise 3x3.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.norm1 = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm2 = LayerNorm2d(channels)
        self.se = SqueezeExcite(channels, max(1, round(channels_in * SE_RATIO)))
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm3 = LayerNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, bias=False)
            self.shortcut = nn.Sequential(conv, LayerNorm2d(channels))

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c h w"]:
        y = F.silu(self.norm1(self.conv1(x)))
        y = F.silu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(self.se(y)))
        return F.silu(y + self.shortcut(x))


def stage(depth: int, channels_in: int, channels: int) -> nn.Sequential:
    """``depth`` blocks; the first changes the number of channels."""
    return nn.Sequential(
        *(Bottleneck(channels_in if i == 0 else channels, channels) for i in range(depth))
    )


class CAbstractorConnector(Connector):
    """Convolutional abstractor of Honeybee: keeps locality, sets the number of tokens freely.

    ``F' = MLP(Blocks2(AdaptiveAvgPool(Blocks1(F + pos))))``
    (section 3.2 and figure 4 of arXiv 2312.06742, with the released code's blocks and
    MLP: ``Linear`` then ``mlp_depth - 1`` times ``SiLU, Linear``)

    Parameters: ``position`` [1, rows·cols, d_vision] (optional), ``net`` (blocks, pooling, blocks)
    and ``readout``.

    Args:
        feature_grid: rows and columns of one tile's features, which ``position`` is made for.

    Raises:
        ValueError: ``forward`` gets another grid than the position embedding's.
    """

    config: CAbstractorConfig

    def __init__(
        self,
        config: CAbstractorConfig,
        d_vision: int,
        d_text: int,
        vocab_size: int,
        feature_grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.config = config
        self.feature_grid = tuple(feature_grid)
        hidden = config.hidden_size
        if config.position_embedding:
            cells = feature_grid[0] * feature_grid[1]
            self.position = nn.Parameter(torch.empty(1, cells, d_vision))
        else:
            self.register_parameter("position", None)
        self.net = nn.Sequential(
            stage(config.depth, d_vision, hidden),
            nn.AdaptiveAvgPool2d((config.out_rows, config.out_cols)),
            stage(config.depth, hidden, hidden),
        )
        readout: list[nn.Module] = [nn.Linear(hidden, d_text)]
        for _ in range(config.mlp_depth - 1):
            readout += [nn.SiLU(), nn.Linear(d_text, d_text)]
        self.readout = nn.Sequential(*readout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.position is not None:
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        _, rows, cols, _ = self.check_grid(features)
        if self.position is not None:
            if (rows, cols) != self.feature_grid:
                raise ValueError(
                    f"features are a {rows}x{cols} grid, but the position embedding was made for "
                    f"{self.feature_grid[0]}x{self.feature_grid[1]}"
                )
            features = features + self.position.view(1, rows, cols, -1)
        pooled = self.net(features.permute(0, 3, 1, 2))
        return self.readout(pooled.flatten(2).transpose(1, 2))
