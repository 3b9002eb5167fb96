"""The page encoder that reads: find lines, read each once, spell them in the model's own tokens.

::

    page ──detector──▶ rotated boxes ──cut out straight──▶ recogniser ──▶ characters, with doubt
         ──reading order──▶ rows of text ──language model's tokenizer──▶ q over tokens, at places

Both networks are PP-OCRv6 small (Apache-2.0) in transformers' own classes. Where lines lie and
where tokens stand is discrete; q is differentiable down to the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.pp_ocrv6_small_det.modeling_pp_ocrv6_small_det import (
    PPOCRV6SmallDetForObjectDetection,
)
from transformers.models.pp_ocrv6_small_rec.modeling_pp_ocrv6_small_rec import (
    PPOCRV6SmallRecForTextRecognition,
)

from ..errors import ConfigError
from .boxes import Boxes, find_boxes, nothing
from .cells import join_tiles, page_grids, place, split_tiles
from .crops import Page
from .lines import Line, assemble
from .networks import folded, line_logits
from .page import PageTokens, Row
from .reader_config import ReaderConfig
from .recognise import Recogniser
from .resize import detector_input
from .spelling import Spelled, Speller

FeatureOf = Callable[[Tensor, Tensor], Tensor]
"""Features ``[n, d]`` of candidate ids ``[n, k]`` with probabilities ``[n, k]``."""
SIDE, MIDDLE = 0.04, 0.07
"""Where a character begins left of its ink, and by how much the middle of small letters lies below
that of a line's box; shares of the height of its letters."""
LEAST_CONTRAST = 0.1
"""A page whose darkest and lightest pixels differ by less, of 2, is blank."""


@dataclass
class ReaderOutput(BaseModelOutput):
    """``last_hidden_state`` holds the features, ``pages`` what was read on each page."""

    pages: list[PageTokens] | None = None


class ReaderModel(PreTrainedModel):
    """Tiles ``[T, 3, height, width]`` to features ``[T, d, rows, cols]``, one a cell.

    What a feature says is the business of the connector: the caller hands in ``feature_of``.
    Without a language model :meth:`read_page` gives a page's text and places.
    """

    config_class = ReaderConfig
    config: ReaderConfig
    base_model_prefix = "reader"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    reads_pages: ClassVar[bool] = True
    """``forward`` takes ``image_grids`` and reads a page's tiles together."""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"speller$", "num_batches_tracked"]
    _keys_to_ignore_on_load_unexpected = [r"^model\.(connector|language_model)\.", r"^lm_head\."]
    """Of a whole model's folder the encoder alone may be loaded."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(config)
        _switches_nothing(config.detector_config, config.recogniser_config.backbone_config)
        self.detector = PPOCRV6SmallDetForObjectDetection(config.detector_config)
        self.recogniser = PPOCRV6SmallRecForTextRecognition(config.recogniser_config)
        self.register_buffer("speller", torch.zeros(config.speller_bytes, dtype=torch.uint8))
        _may_be_switched(self.detector, self.recogniser.model.backbone)
        self.detector.requires_grad_(False)
        self.progress: Callable[[int, int], None] | None = None
        """Called while a page is read, with the lines read and their number; it may raise."""
        self.least = 1e-3
        """Other spellings that weigh less, relative to the most probable one, are dropped. Lower it
        to train: a loss on P_vocab moves probability among the candidates of a place alone."""
        self._spell: Speller | None = None
        self._kept: tuple[int, ...] | None = None
        self.post_init()

    def train(self, mode: bool = True) -> ReaderModel:
        """Batch norms keep the statistics they came with: a page's few lines would spoil them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def compose(self, tokenizer: Any, hidden_size: int) -> None:
        """Take a language model's tokenizer and width (:func:`alignvlm.compose.compose`)."""
        buffer = Speller.of(tokenizer).to_buffer()
        self.register_buffer("speller", buffer.to(self.device))
        self.config.speller_bytes = len(buffer)
        self.config.hidden_size = hidden_size
        self._spell = None

    def keep(self, token_ids: Tensor | None) -> None:
        """Spell with these ids alone: those of a pruned vocabulary; ``None``: with all."""
        kept = None if token_ids is None else tuple(token_ids.tolist())
        if kept != self._kept:
            self._kept, self._spell = kept, None

    @property
    def spelling(self) -> Speller:
        """The tokenizer that spells.

        Raises:
            ConfigError: no language model is known yet.
        """
        if self._spell is None:
            if not len(self.speller):
                raise ConfigError(
                    "the reader knows no language model yet: put it together with one by compose()"
                )
            self._spell = Speller.from_buffer(self.speller, kept=self._kept)
        return self._spell

    def forward(
        self,
        pixel_values: Float[Tensor, "t 3 height width"],
        image_grids: Int[Tensor, "images 3"] | None = None,
        *,
        feature_of: FeatureOf,
        blank: Float[Tensor, " d"],
        **kwargs: Any,
    ) -> ReaderOutput:
        """Features of each cell, and what was read.

        Args:
            image_grids: ``(rows, cols, has thumbnail)`` of each image: how its tiles lie. Without
                it each tile is a page.
            feature_of: says the features of tokens, :meth:`Connector.features_of`.
            blank: feature of the cells in which no token starts.
        """
        grids = [(1, 1)] * len(pixel_values) if image_grids is None else page_grids(image_grids)
        features, pages, start = [], [], 0
        for rows, cols in grids:
            tiles = pixel_values[start : start + rows * cols]
            start += rows * cols
            tokens = self.read_tokens(join_tiles(tiles, rows, cols))
            pages.append(tokens)
            size = self._cells(tiles, rows, cols)
            grid = blank[:, None].expand(-1, size[0] * size[1])
            if len(tokens):
                values = feature_of(tokens.ids, tokens.q)
                index = torch.from_numpy(tokens.cells).to(grid.device)
                grid = grid.index_copy(1, index, values.T.to(grid.dtype))
            features.append(split_tiles(grid.view(-1, *size), rows, cols))
        return ReaderOutput(last_hidden_state=torch.cat(features), pages=pages)

    def _cells(self, tiles: Tensor, rows: int, cols: int) -> tuple[int, int]:
        high, wide = self.config.patch_size
        return rows * tiles.shape[2] // high, cols * tiles.shape[3] // wide

    def read_tokens(self, page: Float[Tensor, "3 height width"]) -> PageTokens:
        """A page as tokens, in reading order, each in its cell.

        Raises:
            DataError: the page holds more tokens than cells.
            ConfigError: no language model is known yet.
        """
        rows = self.read_page(page)
        spelled = self.spelling.spell([row.characters for row in rows], least=self.least)
        high, wide = self.config.patch_size
        return _tokens(rows, spelled, (high, wide), (page.shape[1] // high, page.shape[2] // wide))

    def read_page(self, page: Float[Tensor, "3 height width"]) -> list[Row]:
        """The rows of text on a page in reading order.

        Args:
            page: pixels from -1 to 1. They may lie on any device; gradients flow from the
                characters' probabilities to them and to the recogniser.
        """
        boxes = self.find_lines(page)
        if not len(boxes):
            return []
        logits = partial(line_logits, folded(self.recogniser))
        read = Recogniser(logits, self.config.alphabet, self.progress)
        lines: list[Line] = read(Page(page), boxes)
        return assemble(lines, self.config.alphabet)

    @torch.no_grad()
    def find_lines(self, page: Float[Tensor, "3 height width"]) -> Boxes:
        """Where lines of text are."""
        if float(page.amax() - page.amin()) < LEAST_CONTRAST:
            return nothing()
        pixels, scale, size = detector_input(page)
        found = folded(self.detector)(pixels.to(self.dtype)).last_hidden_state
        probability = found[0, 0, : size[0], : size[1]].float().cpu().numpy()
        return find_boxes(np.ascontiguousarray(probability), scale)


def _switches_nothing(*configs: PreTrainedConfig) -> None:
    """Convolutions have no attention to switch, and their classes refuse to be asked."""
    for config in configs:
        config._attn_implementation = "eager"


def _may_be_switched(*networks: nn.Module) -> None:
    """An attention implementation asked for later, of the whole model, passes them by."""
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, PreTrainedModel):
            module._supports_sdpa = module._supports_flash_attn = True
            module._supports_flex_attn = True


def _tokens(
    rows: list[Row], spelled: list[Spelled], cell: tuple[int, int], size: tuple[int, int]
) -> PageTokens:
    """Tokens of all rows, with their places."""
    boxes, starts, numbers = [], [], []
    for number, (row, tokens) in enumerate(zip(rows, spelled, strict=True)):
        blank = np.array([char.isspace() for char in row.text])
        for start, end in zip(tokens.start, tokens.end):
            own = row.boxes[start:end]
            visible = ~blank[start:end]
            first = int(visible.argmax()) if visible.any() else 0
            shown = own[visible] if visible.any() else own
            boxes.append((*shown[:, :2].min(0), *shown[:, 2:].max(0)))
            left, top, _, bottom = own[first]
            high = 0.0 if row.turned else bottom - top
            starts.append((left - SIDE * high, (top + bottom) / 2 + MIDDLE * high))
            numbers.append(number)
    width = max((tokens.ids.shape[1] for tokens in spelled), default=1)
    pads = [width - tokens.ids.shape[1] for tokens in spelled]
    ids = [nn.functional.pad(t.ids, (0, p), value=-1) for t, p in zip(spelled, pads)]
    q = [nn.functional.pad(t.q, (0, p)) for t, p in zip(spelled, pads)]
    return PageTokens(
        rows=rows,
        ids=torch.cat(ids) if ids else torch.zeros(0, 1, dtype=torch.long),
        q=torch.cat(q) if q else torch.zeros(0, 1),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        cells=place(np.array(starts, np.float32).reshape(-1, 2), cell, size),
        row=np.array(numbers, np.int64),
    )


AutoConfig.register(ReaderConfig.model_type, ReaderConfig, exist_ok=True)
AutoModel.register(ReaderConfig, ReaderModel, exist_ok=True)
