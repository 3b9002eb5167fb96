"""A page encoder built around a text-line recogniser.

::

    page ──backbone, neck──▶ features [rows, columns] ──▶ soft characters, each with its place
         ──lines, each once──▶ speller ──▶ a feature in the cell where a token starts

:mod:`.recogniser` sees characters in every row of the page, :mod:`.characters` keeps each line
once, :mod:`.speller` says which tokens of the language model they spell. ALIGN turns its features
into P_vocab. Which characters are kept and where their features stand is discrete; the features
themselves are differentiable from P_vocab down to the pixels. Cells in which no token starts have
one learned feature, *blank*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .cells import arrange, inked_rows, join_tiles, page_grids, read_row, split_tiles
from .characters import Emissions, Line, Placed, emissions, find_lines, join, rereadings
from .errors import ConfigError
from .recogniser import (
    COLUMN_STRIDE,
    NECK,
    ROW_STRIDE,
    SE_WINDOW,
    Backbone,
    Localiser,
    Neck,
)
from .speller import Speller, chain, start_probabilities

PRETRAINED = ("backbone.", "neck.", "characters.")
"""Where the converted weights go; everything else of a new encoder is initialised."""
ALPHABET = (
    "".join(map(chr, range(32, 127))) + "£€–—‘’“”•©®™°é§·×½ñüöäáíóúçèêàâîôûëïß¥¢±²³"
)  # fmt: skip
REMEMBERED_PAGES = 64
WINDOW = SE_WINDOW[0] // ROW_STRIDE
"""Rows of features of an excitation's window: parts of pages are whole ones."""
START_PRIOR = 0.12
"""Probability above which a character gets a cell in training, to learn whether a token starts."""


class LineReaderConfig(PreTrainedConfig):
    """Config of :class:`LineReaderModel`.

    Args:
        image_size: ``[height, width]`` of a tile, px. Tiles of a page are read together when the
            model says how they lie (``image_grids``); else each is a page of its own.
        patch_size: ``[height, width]`` of a cell, px of the tile. One character wide, and lower
            than the pitch of the lines.
        cell_features: rows and columns of backbone features that make a cell. With
            ``pool_width`` they fix the enlargement: a tile is scaled until a cell is
            ``16 rows x 4 pool_width columns`` px. Text should then be about 42 px (the em), as the
            recogniser knows it: ``[20, 10]`` and ``[2, 2]`` enlarge 1.6 times.
        scales: the sizes at which a page may be read, 1 being the one that follows from the cells.
            All of it is read at the first; at each other one what that suits better, going by the
            size of the text as first seen. Each line is kept from its best reading.
        pool_width: columns of the backbone averaged before the neck.
        alphabet: the characters that can be told apart.
        hidden_size: channels of the output.
        speller_depth: perceptrons of the speller.

    Raises:
        ConfigError: a tile is not a whole number of cells.
    """

    model_type = "line_reader"

    def __init__(
        self,
        image_size: Any = (100, 200),
        patch_size: Any = (20, 10),
        cell_features: Any = (2, 2),
        scales: Sequence[float] = (1.0,),
        pool_width: int = 2,
        alphabet: str = ALPHABET,
        hidden_size: int = 512,
        speller_depth: int = 3,
        **kwargs: Any,
    ) -> None:
        self.image_size = _pair(image_size)
        self.patch_size = _pair(patch_size)
        self.cell_features = _pair(cell_features)
        self.scales = list(scales)
        self.pool_width = pool_width
        self.alphabet = alphabet
        self.hidden_size = hidden_size
        self.speller_depth = speller_depth
        if any(size % cell for size, cell in zip(self.image_size, self.patch_size, strict=True)):
            raise ConfigError(
                f"vision encoder: a tile of {self.image_size} px is not a whole number of cells of "
                f"{self.patch_size} px"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"vision encoder: scales {self.scales} are not positive numbers")
        super().__init__(**kwargs)

    @property
    def cell_px(self) -> tuple[int, int]:
        """Height and width in px of a cell as the backbone sees it, after enlarging."""
        rows, cols = self.cell_features
        return rows * ROW_STRIDE, cols * COLUMN_STRIDE * self.pool_width


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(v) for v in value]


class LineReaderModel(PreTrainedModel):
    """Tiles ``[T, 3, height, width]`` to features ``[T, hidden_size, rows, cols]``, one a cell."""

    config_class = LineReaderConfig
    config: LineReaderConfig
    base_model_prefix = "line_reader"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    reads_pages = True
    """``forward`` takes ``image_grids`` and reads a page's tiles together."""
    # weights of the recogniser alone are a proper start: the rest is initialised
    _keys_to_ignore_on_load_missing = [r"^(localiser|speller|blank)\b"]

    def __init__(self, config: LineReaderConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone()
        self.neck = Neck()
        self.characters = nn.Linear(NECK, 1 + len(config.alphabet))
        self.localiser = Localiser()
        space = config.alphabet.index(" ")
        self.speller = Speller(
            len(config.alphabet), config.hidden_size, config.speller_depth, space
        )
        self.blank = nn.Parameter(torch.zeros(config.hidden_size))
        self.space = space
        self._pages: dict[Any, tuple[Tensor, Tensor]] = {}
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
        elif isinstance(module, nn.EmbeddingBag):
            init.zeros_(module.weight)
        elif module is self:
            init.normal_(self.blank)

    def forward(
        self,
        pixel_values: Float[Tensor, "t 3 height width"],
        image_grids: Int[Tensor, "images 3"] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Features of each cell, ``last_hidden_state``.

        Args:
            image_grids: ``(rows, cols, has thumbnail)`` of each image: how its tiles lie.

        Raises:
            ConfigError: the tiles are not a whole number of cells.
        """
        cell = self.config.patch_size
        size = pixel_values.shape[-2:]
        if size[0] % cell[0] or size[1] % cell[1]:
            raise ConfigError(f"tiles of {tuple(size)} px are no whole number of {cell} px cells")
        grids = [(1, 1)] * len(pixel_values) if image_grids is None else page_grids(image_grids)
        parts, start = [], 0
        for rows, cols in grids:
            tiles = pixel_values[start : start + rows * cols]
            start += rows * cols
            page = join_tiles(tiles, rows, cols)
            features = self.read_page(page)
            parts.append(split_tiles(features, rows, cols))
        return BaseModelOutput(last_hidden_state=torch.cat(parts))

    def read_page(self, page: Float[Tensor, "3 height width"]) -> Float[Tensor, "d rows cols"]:
        """Features of each cell of a page.

        Where nothing is learnt the last pages are remembered: on a CPU a page takes seconds, people
        ask several questions about it, and fine-tuning sees it every epoch.
        """
        cell = self.config.patch_size
        rows, cols = page.shape[1] // cell[0], page.shape[2] // cell[1]
        learns = page.requires_grad or any(p.requires_grad for p in self.parameters())
        if torch.is_grad_enabled() and learns:
            cells, values = self._find(page, (rows, cols))
        else:
            cells, values = self._remembered(page, (rows, cols))
        grid = self.blank[:, None].expand(-1, rows * cols)
        return grid.index_copy(1, cells, values.T.to(grid.dtype)).view(-1, rows, cols)

    def _remembered(self, page: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # in-place changes of weights, and loading them, raise their version
        versions = sum(p._version for p in self.parameters())
        pixels = page.detach().float().cpu().contiguous().numpy()
        scales = tuple(self.config.scales)
        key = (page.shape, page.dtype, scales, versions, blake2b(pixels.tobytes()).digest())
        if key not in self._pages:
            while len(self._pages) >= REMEMBERED_PAGES:
                self._pages.pop(next(iter(self._pages)))
            # tensors of inference mode could not take part in training later
            with torch.inference_mode(False), torch.no_grad():
                self._pages[key] = self._find(page.clone(), size)
        return self._pages[key]

    def _find(
        self, page: Tensor, size: tuple[int, int]
    ) -> tuple[Int[Tensor, "n"], Float[Tensor, "n d"]]:
        """Cells in which tokens start, and their features."""
        first, *others = self.config.scales
        spans = inked_rows(page)
        if torch.is_grad_enabled() and not spans:
            # where several processes learn, all of them must run the recogniser
            spans = [(0, page.shape[1])]
        seen = [self.see(page, first, span) for span in spans]
        if others and seen:
            found, placed = join([part[:2] for part in seen])
            wanted = rereadings(found, placed, self.config.scales)
            for scale, spans in zip(others, wanted, strict=True):
                seen += [self.see(page, scale, span) for span in spans]
        if not any(len(part[0].row) for part in seen):
            nothing = torch.zeros(0, dtype=torch.long, device=page.device)
            return nothing, page.new_zeros(0, len(self.blank))
        found, placed = join([part[:2] for part in seen])
        lines = find_lines(found, placed, self.space)
        return self._spell(lines, found, placed, torch.cat([part[2] for part in seen]), size)

    def see(
        self,
        page: Float[Tensor, "3 height width"],
        scale: float = 1.0,
        span: tuple[float, float] | None = None,
    ) -> tuple[Emissions, Placed, Float[Tensor, "n alphabet"]]:
        """The characters of a page read at one size, where they stand, and what else they may be.

        The last are probabilities without CTC's blank.

        Args:
            span: top and bottom of what is read, px of the page.
        """
        pixels = self.enlarge(page, scale)
        high = page.shape[1] / (pixels.shape[2] // ROW_STRIDE)
        wide = page.shape[2] / (pixels.shape[3] // self.column_stride)
        first = 0
        if span is not None:
            end = (pixels.shape[2] // ROW_STRIDE - 1) // WINDOW * WINDOW
            first = min(max(0, int(span[0] / high) // WINDOW * WINDOW), end)
            last = max(math.ceil(span[1] / high / WINDOW) * WINDOW, first + WINDOW)
            pixels = pixels[:, :, first * ROW_STRIDE : last * ROW_STRIDE]
        features, probabilities = self.recognise(pixels)
        found = emissions(probabilities)
        soft = probabilities[found.row, found.column, 1:]
        soft = soft / soft.sum(-1, keepdim=True).clamp_min(1e-6)
        return found, self.place(found, features, (high, wide), first), soft

    @property
    def column_stride(self) -> int:
        """Width in px, after enlarging, of a column of features."""
        return COLUMN_STRIDE * self.config.pool_width

    def enlarge(
        self, page: Float[Tensor, "3 height width"], scale: float = 1.0
    ) -> Float[Tensor, "1 3 h w"]:
        """The page as the recogniser sees it: ``h`` and ``w`` are whole rows and columns."""
        size, cell = page.shape[-2:], self.config.patch_size
        strides = ROW_STRIDE, self.column_stride
        seen = [
            max(1, round(s / c * px * scale / stride)) * stride
            for s, c, px, stride in zip(size, cell, self.config.cell_px, strides, strict=True)
        ]
        pixels = page[None]
        return pixels if seen == list(size) else F.interpolate(pixels, size=seen, mode="bilinear")

    def recognise(
        self, pixels: Float[Tensor, "1 3 h w"]
    ) -> tuple[Float[Tensor, "c r k"], Float[Tensor, "r k alphabet"]]:
        """Features of backbone and neck, and soft characters (the first is CTC's blank).

        Windows 32 px high at every row of features: ``[504, rows, columns]``.
        """
        window = (2, self.config.pool_width)
        # the last row's window would reach below the page
        x = F.pad(self.backbone(pixels), (0, 0, 0, 1), mode="replicate")
        x = F.avg_pool2d(x, window, (1, window[1]))
        neck = self.neck(x)
        logits = self.characters(neck[0].permute(1, 2, 0))
        return torch.cat([x[0], neck[0]]), logits.float().softmax(-1)

    def gather(self, found: Emissions, features: Float[Tensor, "c r k"]) -> Float[Tensor, "n c3"]:
        """Features of each emission's column and its neighbours, as the localiser takes them."""
        wide = F.pad(features, (1, 1))
        return torch.cat([wide[:, found.row, found.column + k].T for k in range(3)], 1)

    def place(
        self,
        found: Emissions,
        features: Float[Tensor, "c r k"],
        pitch: tuple[float, float],
        first: int = 0,
    ) -> Placed:
        """Where each emission's character stands.

        Args:
            pitch: height and width in px of the page of a row and a column of features.
            first: the row of the page that is the features' first.
        """
        # the localiser counts in cells
        high, wide = (n * px for n, px in zip(self.config.cell_features, pitch, strict=True))
        where = self.localiser(self.gather(found, features)).detach().float().cpu().numpy()
        # the middles of windows, which are two rows of features high
        x = (found.column.cpu().numpy() + 0.5) * pitch[1]
        y = (found.row.cpu().numpy() + first + 1.0) * pitch[0]
        em = np.exp(where[:, 2])
        return Placed(
            x=x + where[:, 0] * wide,
            y=y + where[:, 1] * high,
            em=em * high,
            right=x + where[:, 3] * wide,
            seen=em * self.config.cell_px[0],
        )

    def _spell(
        self,
        lines: list[Line],
        found: Emissions,
        placed: Placed,
        soft: Tensor,
        size: tuple[int, int],
    ) -> tuple[Int[Tensor, "n"], Float[Tensor, "n d"]]:
        """Cells of the page and the features that belong there.

        A line is spelled as if a space stood before it, as :mod:`alignvlm.data.ground` does: most
        words are one token then.
        """
        high, wide = self.config.patch_size
        device = soft.device
        blank_space = F.one_hot(torch.tensor(self.space), soft.shape[1]).to(soft)
        soft = torch.cat([soft, blank_space[None]])  # index -1: a space that was not seen
        kinds = found.kind.cpu().numpy()
        rows: dict[int, list[Line]] = {}
        for line in lines:
            row = min(max(int(line.y // high), 0), size[0] - 1)
            rows.setdefault(row, []).append(line)
        windows, beginnings, places = [], [], []
        for row, members in sorted(rows.items()):
            order, x = read_row(members, placed, kinds, self.space)
            chars = soft[torch.from_numpy(np.append(-1, order)).to(device)]
            windows.append(self.speller.windows(chars)[1:])
            beginnings.append(self.speller.beginnings(chars)[1:])
            places.append([(row, edge / wide) for edge in x])
        if not windows:
            return torch.zeros(0, dtype=torch.long, device=device), soft.new_zeros(
                0, len(self.blank)
            )
        features = self.speller.features(torch.cat(windows), torch.cat(beginnings))
        lengths = self.speller.lengths(features).float()
        sizes = [len(row) for row in places]
        starts = np.zeros(sum(sizes), bool)
        for at, row in zip(np.cumsum([0, *sizes]), lengths.argmax(-1).split(sizes)):
            starts[at + np.array(chain(row.tolist()), np.int64)] = True
        likely, gates = starts, None
        if lengths.requires_grad:
            gates = torch.cat([start_probabilities(row) for row in lengths.split(sizes)])
            likely = gates.detach().cpu().numpy() > START_PRIOR
        chosen, cells = arrange([place for row in places for place in row], starts, likely, size)
        index = torch.tensor(chosen, device=device, dtype=torch.long)
        values = features[index]
        if gates is not None:
            hard = torch.from_numpy(starts).to(features)[index, None]
            soft_gate = gates[index, None].to(features)
            # a start or none; gradients flow as if it were a mixture
            gate = hard + soft_gate - soft_gate.detach()
            values = gate * values + (1 - gate) * self.blank
        return torch.tensor(cells, device=device, dtype=torch.long), values


AutoConfig.register(LineReaderConfig.model_type, LineReaderConfig, exist_ok=True)
AutoModel.register(LineReaderConfig, LineReaderModel, exist_ok=True)
