"""``alignvlm data show``: one sample as the model gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoProcessor

from ..compose.assemble import build_config, load_tokenizer, vision_config
from ..data import encode
from ..data.ground import GroundTruth, as_words, page_targets
from ..data.records import load_images
from ..data.sources import JsonlSource, Source
from ..errors import AlignVLMError, DataError
from ..model.losses import IGNORE
from ..processing.processor import AlignVLMProcessor
from ..tiling import Grid
from ..weights.folder import loaded
from ..weights.resolve import resolve
from .recipe import Recipe, load_recipe
from .stages import build_mix

BLANK, UNREAD = "·", "?"
"""How a blank cell is shown; a full stop is a token of its own."""


@dataclass
class Shown:
    """One encoded sample.

    Attributes:
        record_id, source: where it comes from.
        tokens: ``(id, text, supervised)`` of each position.
        grids: tile rows, columns and thumbnail of each image.
        cells: grounded targets as text, one string a row of cells; blank cells are ``BLANK``,
            and those with ink that no word explains ``UNREAD``.
        lost: tokens that found no cell.
        images: the pages.
    """

    record_id: str
    source: str
    tokens: list[tuple[int, str, bool]]
    grids: list[list[int]]
    cells: list[list[str]] = field(default_factory=list)
    lost: int = 0
    images: list[Image.Image] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "id": self.record_id,
            "source": self.source,
            "tokens": [
                {"id": i, "text": text, "supervised": mask} for i, text, mask in self.tokens
            ],
            "image_grids": self.grids,
            "images": [list(image.size) for image in self.images],
            "cells": self.cells,
            "lost": self.lost,
        }

    def to_text(self) -> str:
        """For people: runs of placeholders shortened, supervised tokens in brackets."""
        lines = [f"{self.record_id} from {self.source}: {len(self.tokens)} tokens"]
        for image, grid in zip(self.images, self.grids, strict=True):
            lines.append(f"page {image.width}x{image.height} px, {grid[0]}x{grid[1]} tiles")
        lines.append("position  id      mask   text")
        for text, start, stop, index, supervised in self._runs():
            where = f"{start}" if stop == start + 1 else f"{start}-{stop - 1}"
            lines.append(f"{where:<9} {index:<7} {'learn' if supervised else '  -  '}  {text!r}")
        if self.cells:
            lines.append(f"tokens that start in each cell ({self.lost} lost):")
            lines += [" ".join(f"{cell:<5.5}" for cell in row).rstrip() for row in self.cells]
        return "\n".join(lines)

    def _runs(self) -> list[tuple[str, int, int, int, bool]]:
        runs: list[tuple[str, int, int, int, bool]] = []
        for position, (index, text, mask) in enumerate(self.tokens):
            if runs and runs[-1][3] == index and runs[-1][4] == mask:
                last = runs.pop()
                runs.append((last[0], last[1], position + 1, index, mask))
            else:
                runs.append((text, position, position + 1, index, mask))
        return runs

    def save(self, folder: Path) -> list[Path]:
        """Write the page images as PNG."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, image in enumerate(self.images):
            path = folder / f"{self.record_id.replace('/', '_')}-{number}.png"
            image.save(path)
            paths.append(path)
        return paths


def show(
    reference: str,
    *,
    model: str | None = None,
    stage: int = 1,
    index: int = 0,
    overrides: list[str] | None = None,
) -> Shown:
    """Encode one sample of a recipe's stage, or of a JSONL file.

    Raises:
        ConfigError, DataError: no such recipe, stage, file or sample.
    """
    source: Source
    recipe: Recipe | None = None
    if reference.endswith((".jsonl", ".json")):
        if model is None:
            raise AlignVLMError("data show of a JSONL file needs --model, whose processor encodes")
        source = JsonlSource(reference)
    else:
        recipe = load_recipe(reference, overrides)
        if stage > len(recipe.stages):
            raise DataError(f"{reference} has {len(recipe.stages)} stages, there is no {stage}")
        source = build_mix(recipe.stages[stage - 1], recipe.seed + 1000 * stage)
    if index >= len(source):
        raise DataError(f"{reference} has {len(source)} samples, there is no number {index}")
    config, processor = _loaded(model) if model is not None else _parts(recipe)
    record = source[index]
    sample = encode.encode(record, processor)
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    images = load_images(record)
    grids = sample["image_grids"].tolist() if "image_grids" in sample else []
    shown = Shown(
        record_id=record.id,
        source=record.source,
        tokens=[
            (token, processor.tokenizer.decode([token]), label != IGNORE)
            for token, label in zip(ids, labels, strict=True)
        ],
        grids=grids,
        images=images,
    )
    if record.words is not None and config.tile_token_grid is not None:
        tokenizer = processor.tokenizer
        unread = record.unread or [[] for _ in images]
        for image, grid, words, ink in zip(images, grids, record.words, unread, strict=True):
            cells = Grid(*grid[:2])
            truth = page_targets(as_words(words), image.size, cells, config, tokenizer, ink)
            _add_cells(shown, truth, config.blank_token_id, tokenizer)
    return shown


def _add_cells(shown: Shown, truth: GroundTruth, blank_id: int | None, tokenizer: Any) -> None:
    shown.lost += truth.lost
    names = {blank_id: BLANK, IGNORE: UNREAD}
    for row in truth.targets.tolist():
        shown.cells.append([names.get(i) or tokenizer.decode([i]).strip() for i in row])


def _parts(recipe: Recipe | None) -> tuple[Any, AlignVLMProcessor]:
    """Config and processor of a recipe, without building its model."""
    assert recipe is not None
    spec = recipe.model
    tokenizer = load_tokenizer(spec.text)
    config = build_config(
        vision_config(spec.vision_config or spec.vision),
        loaded(AutoConfig, resolve(spec.text)),
        spec.connector,
        tokenizer,
        image_token=spec.image_token,
        **spec.config_options(),
    )
    tiling = spec.tiling.model_dump(include={"max_tiles", "min_tiles", "thumbnail"})
    processor = AlignVLMProcessor.for_config(
        config, tokenizer, chat_template=spec.chat_template, **tiling
    )
    return config, processor


def _loaded(model: str) -> tuple[Any, AlignVLMProcessor]:
    folder = resolve(model)
    return loaded(AutoConfig, folder), loaded(AutoProcessor, folder)
