"""What a reader reads on a page, without the language model: words, their places and doubt."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer

from ..compose.assemble import load_reader
from ..errors import ConfigError
from ..processing.image_processor import AlignVLMImageProcessor
from ..reader import ReaderModel, Row, Spelled
from ..reader.cells import join_tiles
from ..reader.order import page_slant
from ..reader.page import Box
from ..tiling import Grid, fit_scale
from ..weights.folder import loaded
from ..weights.resolve import resolve
from .loading import default_device, default_dtype
from .page_text import Choice, ReadLine, ReadToken, ReadWord, WordPage

CHOICES = 3
"""Other spellings of a word that are told, at most."""
LEAST_CHOICE = 0.01
"""Less probable ones are not."""


class PageReader:
    """Reads pages; the language model is not loaded.

    Args:
        model: in evaluation mode, on the device that works.
        image_processor: cuts pages as the model's own.
        tokenizer: of its language model, where lines shall have tokens.
    """

    def __init__(
        self, model: ReaderModel, image_processor: AlignVLMImageProcessor, tokenizer: Any = None
    ) -> None:
        self.model, self.image_processor, self.tokenizer = model, image_processor, tokenizer

    @classmethod
    def load(cls, reference: str | os.PathLike[str], *, tokens: bool = False) -> PageReader:
        """The reader of a model.

        Args:
            reference: folder, hub id, ``smol``, or ``reader`` for the reader alone.
            tokens: lines shall have tokens.

        Raises:
            ConfigError: its page encoder does not read, or has no language model and so no tokens.
            WeightsError: no such model, or corrupt files.
        """
        folder, device = resolve(reference), default_device()
        model, image_processor = load_reader(folder, default_dtype(device))
        model.eval().to(device)  # type: ignore[arg-type]
        tokenizer = None
        if tokens:
            if not len(model.speller):
                raise ConfigError(f"{reference}: no language model is in it, which tokens are of")
            model.keep(_kept(folder))
            tokenizer = loaded(AutoTokenizer, folder)
        return cls(model, image_processor, tokenizer)

    def watch(self, progress: Callable[[int, int], None] | None) -> None:
        """Have ``progress`` called while a page is read, with the lines read and their number."""
        self.model.progress = progress

    @torch.inference_mode()
    def read(self, image: Image.Image, page: int = 1, scale: float | None = None) -> WordPage:
        """The lines of a page.

        Args:
            page: its number in the document, from 1.
            scale: px of the image per PDF point, if it is a PDF's.

        Raises:
            DataError: the image cannot be used.
        """
        pixels, shrunk = self._pixels(image)
        rows = self.model.read_page(pixels)
        spelled = self._spelled(rows)
        lines = [_line(r, s, shrunk, image.size, self.tokenizer) for r, s in zip(rows, spelled)]
        return WordPage(page, *image.size, lines, scale)

    def slant(self, image: Image.Image) -> float:
        """Degrees by which level lines of a page run down to the right."""
        return math.degrees(page_slant(self.model.find_lines(self._pixels(image)[0])))

    def _pixels(self, image: Image.Image) -> tuple[Tensor, float]:
        """A page as the networks get it, ``[3, height, width]``, and px of that for each px of the
        image."""
        batch = self.image_processor([image], return_tensors="pt")
        down, across, _ = batch["image_grids"][0].tolist()
        grid, size = Grid(down, across), self.image_processor.size
        tiles = batch["pixel_values"][: grid.tiles].to(self.model.device, self.model.dtype)
        enlarge = self.image_processor.enlarge
        scale = fit_scale(*image.size, grid, size["width"], size["height"], enlarge)
        return join_tiles(tiles, *grid), scale

    def _spelled(self, rows: list[Row]) -> Sequence[Spelled | None]:
        if self.tokenizer is None or not rows:
            return [None] * len(rows)
        return self.model.spelling.spell([row.characters for row in rows], least=self.model.least)


def _kept(folder: os.PathLike[str]) -> Tensor | None:
    """The ids of a pruned vocabulary."""
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            if "model.connector.token_ids" in weights.keys():  # noqa: SIM118
                return weights.get_tensor("model.connector.token_ids")
    return None


def _line(
    row: Row, spelled: Spelled | None, shrunk: float, size: tuple[int, int], tokenizer: Any
) -> ReadLine:
    place = _Places(row, shrunk, size)
    words = [_word(row, *found.span(), place) for found in re.finditer(r"\S+", row.text)]
    tokens = [] if spelled is None else _tokens(spelled, place, tokenizer)
    return ReadLine(row.text, place.around(0, len(row.text)), row.turned, words, tokens)


class _Places:
    """Boxes of characters in px of the page image, within the page."""

    def __init__(self, row: Row, shrunk: float, size: tuple[int, int]) -> None:
        width, height = size
        self.boxes = (row.boxes / shrunk).clip(0, (width, height, width, height))
        self.solid = np.array([not char.isspace() for char in row.text], bool)

    def around(self, start: int, end: int) -> Box:
        """Of some characters; of spaces only where there is nothing else."""
        own, solid = self.boxes[start:end], self.solid[start:end]
        own = own[solid] if solid.any() else own
        x0, y0, x1, y1 = (*own[:, :2].min(0).tolist(), *own[:, 2:].max(0).tolist())
        return round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)


def _word(row: Row, start: int, end: int, place: _Places) -> ReadWord:
    sure = float(row.probability[start:end].astype(np.float64).prod())
    found = []
    for at in range(start, end):
        ratios = row.characters.log_ratio[at].tolist()
        for char, ratio in zip(row.characters.options[at], ratios):
            text = row.text[start:at] + char + row.text[at + 1 : end]
            found.append(Choice(text, round(sure * math.exp(ratio), 4)))
    return ReadWord(row.text[start:end], place.around(start, end), round(sure, 4), _likely(found))


def _tokens(spelled: Spelled, place: _Places, tokenizer: Any) -> list[ReadToken]:
    result = []
    for start, end, ids, q in zip(
        spelled.start, spelled.end, spelled.ids.tolist(), spelled.q.tolist()
    ):
        texts = [tokenizer.decode([i]) for i in ids if i >= 0]
        others = [Choice(text, round(p, 4)) for text, p in zip(texts[1:], q[1:])]
        box = place.around(start, end)
        result.append(ReadToken(texts[0], ids[0], box, round(q[0], 4), _likely(others)))
    return result


def _likely(choices: list[Choice]) -> list[Choice]:
    likely = [one for one in choices if one.confidence >= LEAST_CHOICE]
    return sorted(likely, key=lambda one: -one.confidence)[:CHOICES]
