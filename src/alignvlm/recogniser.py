"""PP-OCRv6 small's text-line recogniser, to be run over whole pages.

The recogniser (PaddleOCR, Apache-2.0) is a fully convolutional backbone, PP-LCNetV4, that turns a
line 48 px high into a few rows of features, a *neck* of two SVTR blocks (arXiv 2205.00159) in which
the columns of the line exchange what they see, and a classifier of characters. Over a whole page,
with the neck on every row of features, they read lines wherever these stand.
:mod:`alignvlm.pretrained_vision` has the weights, :mod:`alignvlm.line_reader` the page encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ROW_STRIDE, COLUMN_STRIDE = 16, 4
"""Height and width in px of one cell of the backbone's last feature map."""
SE_WINDOW = (48, 320)
"""Height and width in px over which squeeze-and-excitation averages: a line of text."""
STEM = (48, 96)
# stages of blocks: (input channels, output channels, vertical stride, squeeze-and-excitation)
STAGES = (
    ((96, 96, 1, True),),
    ((96, 96, 1, False),) * 2,
    ((96, 192, 2, False), *(((192, 192, 1, True), (192, 192, 1, False)) * 3)),
    ((192, 384, 2, False), (384, 384, 1, True), (384, 384, 1, False)),
)
NECK, NECK_HEADS, NECK_BLOCKS = 120, 8, 2


class Stem(nn.Module):
    """Two branches at half size, then a quarter: ``[B, 3, h, w]`` to ``[B, 96, h/4, w/4]``."""

    def __init__(self) -> None:
        super().__init__()
        half, out = STEM
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1)
        self.conv2a = nn.Conv2d(half, half // 2, 2)
        self.conv2b = nn.Conv2d(half // 2, half, 2)
        self.conv3 = nn.Conv2d(2 * half, half, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(half, out, 1)

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order of the graph."""
        return [self.conv1, self.conv2a, self.conv2b, self.conv3, self.conv4]

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.pad(F.relu(self.conv1(pixels)), (0, 1, 0, 1))
        branch = F.pad(F.relu(self.conv2a(x)), (0, 1, 0, 1))
        x = torch.cat([F.max_pool2d(x, 2, 1), F.relu(self.conv2b(branch))], 1)
        return F.relu(self.conv4(F.relu(self.conv3(x))))


class WindowedExcitation(nn.Module):
    """Squeeze-and-excitation over windows instead of the whole image.

    The recogniser averages over a line; a page is mostly blank, and its average says little. A
    window no smaller than the input is the plain module (arXiv 1709.01507).
    """

    def __init__(self, channels: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.conv1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[-2:]
        high, wide = min(self.window[0], rows), min(self.window[1], cols)
        gate = F.avg_pool2d(x, (high, wide), ceil_mode=True)
        gate = F.hardsigmoid(self.conv2(F.relu(self.conv1(gate))))
        gate = gate.repeat_interleave(high, 2)[:, :, :rows]
        return x * gate.repeat_interleave(wide, 3)[..., :cols]


class Block(nn.Module):
    """Depthwise 3x3, excitation, and a two-layer perceptron over the channels."""

    def __init__(self, in_channels: int, channels: int, stride: int, excite: bool, row: int):
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=(stride, 1), padding=1, groups=in_channels
        )
        window = SE_WINDOW[0] // row, SE_WINDOW[1] // COLUMN_STRIDE
        self.excitation = WindowedExcitation(in_channels, window) if excite else None
        self.expand = nn.Conv2d(in_channels, 2 * in_channels, 1)
        self.project = nn.Conv2d(2 * in_channels, channels, 1)
        self.residual = in_channels == channels and stride == 1

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order of the graph."""
        gate = [] if self.excitation is None else [self.excitation.conv1, self.excitation.conv2]
        return [self.depthwise, *gate, self.expand, self.project]

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        if self.excitation is not None:
            x = self.excitation(x)
        mixed = self.project(F.gelu(self.expand(x)))
        return x + mixed if self.residual else mixed


class Backbone(nn.Module):
    """PP-LCNetV4 of the recogniser, batch norms folded: ``[B, 3, h, w]`` to
    ``[B, 384, h/16, w/4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        stages, row = [], 4
        for stage in STAGES:
            blocks = []
            for in_channels, channels, stride, excite in stage:
                row *= stride
                blocks.append(Block(in_channels, channels, stride, excite, row))
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order of the graph."""
        blocks = [block for stage in self.stages for block in stage]
        return self.stem.convolutions() + [conv for b in blocks for conv in b.convolutions()]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.stages(self.stem(pixels))


class RowAttention(nn.Module):
    """A transformer block over the columns of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(NECK, eps=1e-6)
        self.qkv = nn.Linear(NECK, 3 * NECK)
        self.out = nn.Linear(NECK, NECK)
        self.norm2 = nn.LayerNorm(NECK, eps=1e-6)
        self.up = nn.Linear(NECK, 2 * NECK)
        self.down = nn.Linear(2 * NECK, NECK)

    def forward(self, x: Float[Tensor, "rows cols d"]) -> Float[Tensor, "rows cols d"]:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, NECK_HEADS, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(self.norm2(x))))


class Neck(nn.Module):
    """The recogniser's SVTR encoder, on every row of features by itself."""

    def __init__(self) -> None:
        super().__init__()
        channels = STAGES[-1][-1][1]
        self.skip = nn.Conv2d(channels, NECK, 1)
        self.reduce = nn.Conv2d(channels, NECK, 1)
        self.local = nn.Conv2d(NECK, NECK, (1, 7), padding=(0, 3), groups=NECK)
        self.blocks = nn.ModuleList(RowAttention() for _ in range(NECK_BLOCKS))
        self.norm = nn.LayerNorm(NECK, eps=1e-6)

    def forward(self, features: Float[Tensor, "b 384 r c"]) -> Float[Tensor, "b 120 r c"]:
        skip, x = F.silu(self.skip(features)), F.silu(self.reduce(features))
        x = x + F.silu(self.local(x))
        batch, _, rows, _ = x.shape
        x = x.permute(0, 2, 3, 1).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return skip + self.norm(x).unflatten(0, (batch, rows)).permute(0, 3, 1, 2)


class Localiser(nn.Module):
    """Where a character that was read stands, in cells: left edge, line, size, right edge.

    It looks at the features of the character's column and of its two neighbours.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = STAGES[-1][-1][1] + NECK
        self.norm = nn.LayerNorm(3 * channels)
        self.hidden = nn.Linear(3 * channels, 128)
        self.out = nn.Linear(128, 4)

    def forward(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n 4"]:
        """Offsets from the window's column (x) and middle (y), and ``log(em)``."""
        return self.out(F.gelu(self.hidden(self.norm(features))))
