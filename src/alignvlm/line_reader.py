"""A page encoder built around a text-line recogniser, PP-OCRv6 small.

The recogniser (PaddleOCR, Apache-2.0) is a fully convolutional backbone, PP-LCNetV4, that turns a
line 48 px high into a few rows of features, and a *neck* of two SVTR blocks (arXiv 2205.00159) in
which the columns of the line exchange what they see. Run over a whole page, with the neck on every
row of features, they read lines wherever these stand; :class:`LineReaderModel` adds layers that
turn characters into the features of a cell. :mod:`alignvlm.pretrained_vision` has the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .errors import ConfigError

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
PRETRAINED = ("backbone.", "neck.")
"""Where the converted weights go; everything else of a new encoder is initialised."""


class LineReaderConfig(PreTrainedConfig):
    """Config of :class:`LineReaderModel`.

    Args:
        image_size: ``[height, width]`` of a tile, px.
        patch_size: ``[height, width]`` of a cell, px of the tile. One character wide, and lower
            than the pitch of the lines.
        cell_features: rows and columns of backbone features that make a cell. With
            ``pool_width`` they fix the enlargement: a tile is scaled until a cell is
            ``16 rows x 4 pool_width columns`` px. Text should then be about 42 px (the em), as the
            recogniser knows it: ``[20, 10]`` and ``[2, 2]`` enlarge 1.6 times.
        pool_width: columns of the backbone averaged before the neck.
        hidden_size: channels of the output.
        mixer_depth: blocks that mix neighbouring cells.
        mixer_kernel: rows and columns they see.

    Raises:
        ConfigError: a tile is not a whole number of cells.
    """

    model_type = "line_reader"

    def __init__(
        self,
        image_size: Any = (320, 640),
        patch_size: Any = (20, 10),
        cell_features: Any = (2, 2),
        pool_width: int = 2,
        hidden_size: int = 384,
        mixer_depth: int = 4,
        mixer_kernel: Any = (3, 9),
        **kwargs: Any,
    ) -> None:
        self.image_size = _pair(image_size)
        self.patch_size = _pair(patch_size)
        self.cell_features = _pair(cell_features)
        self.pool_width = pool_width
        self.hidden_size = hidden_size
        self.mixer_depth = mixer_depth
        self.mixer_kernel = _pair(mixer_kernel)
        if any(size % cell for size, cell in zip(self.image_size, self.patch_size, strict=True)):
            raise ConfigError(
                f"vision encoder: a tile of {self.image_size} px is not a whole number of cells of "
                f"{self.patch_size} px"
            )
        super().__init__(**kwargs)

    @property
    def cell_px(self) -> tuple[int, int]:
        """Height and width in px of a cell as the backbone sees it, after enlarging."""
        rows, cols = self.cell_features
        return rows * ROW_STRIDE, cols * COLUMN_STRIDE * self.pool_width


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(v) for v in value]


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


class Mixer(nn.Module):
    """Depthwise convolution over cells and a perceptron over channels (arXiv 2201.03545)."""

    def __init__(self, width: int, kernel: list[int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            width, width, tuple(kernel), padding=tuple(k // 2 for k in kernel), groups=width
        )
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Float[Tensor, "b d r c"]) -> Float[Tensor, "b d r c"]:
        mixed = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(mixed))).permute(0, 3, 1, 2)


class LineReaderModel(PreTrainedModel):
    """Tiles ``[T, 3, height, width]`` to features ``[T, hidden_size, rows, cols]``, one a cell.

    Enlarge, backbone, windows two feature rows (32 px) high at every row, neck on each row, then
    ``cell_features`` of them become one cell and the mixers tell neighbouring cells about it.
    """

    config_class = LineReaderConfig
    config: LineReaderConfig
    base_model_prefix = "line_reader"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # weights of the recogniser alone are a proper start: the rest is initialised
    _keys_to_ignore_on_load_missing = [r"^(backbone_norm|neck_norm|merge|mixers|norm)\b"]

    def __init__(self, config: LineReaderConfig) -> None:
        super().__init__(config)
        width, channels = config.hidden_size, STAGES[-1][-1][1]
        self.backbone = Backbone()
        self.neck = Neck()
        self.backbone_norm = nn.LayerNorm(channels)
        self.neck_norm = nn.LayerNorm(NECK)
        cell = tuple(config.cell_features)
        self.merge = nn.Conv2d(channels + NECK, width, cell, stride=cell)
        self.mixers = nn.Sequential(
            *(Mixer(width, config.mixer_kernel) for _ in range(config.mixer_depth))
        )
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm):
            # transformers' functions leave loaded weights alone
            if isinstance(module, nn.LayerNorm):
                init.ones_(module.weight)
            else:
                init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)

    def forward(
        self, pixel_values: Float[Tensor, "t 3 height width"], **kwargs: Any
    ) -> BaseModelOutput:
        """Features of each cell, ``last_hidden_state``.

        Raises:
            ConfigError: the tiles are not a whole number of cells.
        """
        cell = self.config.patch_size
        size = pixel_values.shape[-2:]
        if size[0] % cell[0] or size[1] % cell[1]:
            raise ConfigError(f"tiles of {tuple(size)} px are no whole number of {cell} px cells")
        # one tile at a time on a CPU: a page's activations would be gigabytes, and it is no slower
        parts = pixel_values.split(1 if pixel_values.device.type == "cpu" else len(pixel_values))
        x = torch.cat([self._read(part) for part in parts])
        both = [_normed(self.backbone_norm, x), _normed(self.neck_norm, self.neck(x))]
        x = self.mixers(self.merge(torch.cat(both, 1)))
        return BaseModelOutput(last_hidden_state=_normed(self.norm, x))

    def _read(self, pixels: Tensor) -> Tensor:
        """Backbone features of windows 32 px high: ``[T, 384, rows, columns]`` of the neck."""
        cell, size = self.config.patch_size, pixels.shape[-2:]
        seen = [s // c * px for s, c, px in zip(size, cell, self.config.cell_px, strict=True)]
        if seen != list(size):
            pixels = F.interpolate(pixels, size=seen, mode="bilinear")
        window = (2, self.config.pool_width)
        # the last row's window would reach below the tile
        x = F.pad(self.backbone(pixels), (0, 0, 0, 1), mode="replicate")
        return F.avg_pool2d(x, window, (1, window[1]))


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


AutoConfig.register(LineReaderConfig.model_type, LineReaderConfig, exist_ok=True)
AutoModel.register(LineReaderConfig, LineReaderModel, exist_ok=True)
