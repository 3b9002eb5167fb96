"""H-Reducer: the connector of mPLUG-DocOwl 1.5."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .configs import HReducerConfig
from .connector import Connector


class HReducerConnector(Connector):
    """A convolution merges horizontal neighbours, a linear layer maps to the LM's width.

    ``F̄[i, j] = Σ_k K[k] F[i, kernel·j + k] + b``,  ``F'[i, j] = W F̄[i, j] + c``
    (section 3.1 of mPLUG-DocOwl 1.5, arXiv 2403.12895; there kernel = 4. The released code puts one
    more convolution and a GELU before, which the paper does not mention)

    Columns that do not fill a kernel are padded with zeros at the right.

    Parameters: ``conv`` [d_vision, d_vision, 1, kernel] with bias, ``w`` [d_text, d_vision] with
    bias.
    """

    config: HReducerConfig

    def __init__(
        self,
        config: HReducerConfig,
        d_vision: int,
        d_text: int,
        vocab_size: int = 0,
        feature_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        size = (1, config.kernel)
        self.conv = nn.Conv2d(d_vision, d_vision, kernel_size=size, stride=size)
        self.w = nn.Linear(d_vision, d_text)

    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        _, _, cols, _ = self.check_grid(features)
        padded = F.pad(features, (0, 0, 0, -cols % self.config.kernel))
        merged = self.conv(padded.permute(0, 3, 1, 2))  # [tiles, d_vision, rows, cols / kernel]
        return self.w(merged.flatten(2).transpose(1, 2))
