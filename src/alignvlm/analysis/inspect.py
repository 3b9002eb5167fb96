"""P_vocab over a page: what each visual token says, as data and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..connectors import AlignConnector
from ..errors import ConfigError
from ..generation import AlignVLMForConditionalGeneration
from ..processor import AlignVLMProcessor
from ..tiling import Grid, fit_scale, page_order


@dataclass(frozen=True)
class CellReading:
    """One visual token.

    Attributes:
        row, col: place in the page's grid of cells.
        box: x0, y0, x1, y1 in px of the page image.
        entropy: of P_vocab, nats.
        tokens: the most probable tokens as ``(text, id, probability)``, best first.
    """

    row: int
    col: int
    box: tuple[float, float, float, float]
    entropy: float
    tokens: list[tuple[str, int, float]]


@dataclass(frozen=True)
class PageReading:
    """All visual tokens of a page in reading order.

    Attributes:
        rows, cols: the grid of cells.
        cells: row by row.
        blank_id: the id that means "nothing starts here".
        entropy, effective_vocab: means over the cells.
    """

    rows: int
    cols: int
    cells: list[CellReading]
    blank_id: int | None
    entropy: float
    effective_vocab: float

    def ids(self) -> list[list[int]]:
        """The most probable id of each cell, row by row."""
        best = [cell.tokens[0][1] for cell in self.cells]
        return [best[r * self.cols : (r + 1) * self.cols] for r in range(self.rows)]

    def text(self, tokenizer: Any) -> str:
        """What the page says by the most probable token of each cell; blank cells dropped."""
        lines = []
        for row in self.ids():
            kept = [index for index in row if index != self.blank_id]
            if kept:
                lines.append(tokenizer.decode(kept).strip())
        return "\n".join(lines)

    def most_probable(self, count: int) -> list[tuple[str, float]]:
        """Tokens other than blank by their probability summed over the page, best first."""
        mass: dict[str, float] = {}
        for cell in self.cells:
            for text, index, probability in cell.tokens:
                if index != self.blank_id:
                    mass[text] = mass.get(text, 0.0) + probability
        return sorted(mass.items(), key=lambda item: -item[1])[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@torch.no_grad()
def read_page(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    image: Image.Image,
    k: int = 5,
) -> PageReading:
    """P_vocab of each visual token of a page: its ``k`` most probable tokens.

    Raises:
        ConfigError: the connector is not ALIGN, so there is no P_vocab.
    """
    grid, features = page_features(model, processor, image)
    return read_features(model, processor, image.size, grid, features, k)


@torch.no_grad()
def page_features(
    model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor, image: Image.Image
) -> tuple[Grid, Tensor]:
    """A page's tiles and their features ``[tiles, rows, cols, d_vision]``."""
    batch = processor.image_processor([image], return_tensors="pt")
    rows, cols, _ = batch["image_grids"][0].tolist()
    grid = Grid(rows, cols)
    pixels = batch["pixel_values"][: grid.tiles].to(model.device)  # the thumbnail has no place
    return grid, model.model.encode_tiles(pixels, torch.tensor([[rows, cols, 0]]))


@torch.no_grad()
def read_features(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    size: tuple[int, int],
    grid: Grid,
    features: Tensor,
    k: int,
) -> PageReading:
    """What :func:`page_features` gave, read; ``size`` is the page's width and height, px.

    Raises:
        ConfigError: see :func:`read_page`.
    """
    connector = model.model.connector
    if not isinstance(connector, AlignConnector):
        raise ConfigError(
            f"inspect needs the 'align' connector; this model has {model.config.connector.type!r}"
        )
    probabilities, ids = connector.top_tokens(features, k)
    entropy = connector.entropy(features).flatten()
    token_rows, token_cols = features.shape[1:3]
    order = page_order(grid, token_rows, token_cols).to(entropy.device)
    cells = _cells(
        size,
        grid,
        (token_rows, token_cols),
        model.config,
        probabilities.flatten(0, 2)[order].tolist(),
        ids.flatten(0, 2)[order].tolist(),
        entropy[order].tolist(),
        processor.tokenizer,
    )
    return PageReading(
        rows=grid.rows * token_rows,
        cols=grid.cols * token_cols,
        cells=cells,
        blank_id=model.config.blank_token_id,
        entropy=entropy.mean().item(),
        effective_vocab=entropy.exp().mean().item(),
    )


def _cells(
    size: tuple[int, int],
    grid: Grid,
    tokens: tuple[int, int],
    config: Any,
    probabilities: list[list[float]],
    ids: list[list[int]],
    entropies: list[float],
    tokenizer: Any,
) -> list[CellReading]:
    scale = fit_scale(*size, grid, config.tile_width, config.tile_height)
    height = config.tile_height / tokens[0] / scale
    width = config.tile_width / tokens[1] / scale
    cols = grid.cols * tokens[1]
    cells = []
    for index, (probs, row_ids, entropy) in enumerate(
        zip(probabilities, ids, entropies, strict=True)
    ):
        row, col = divmod(index, cols)
        box = (col * width, row * height, (col + 1) * width, (row + 1) * height)
        top = [(tokenizer.decode([i]), i, p) for i, p in zip(row_ids, probs, strict=True)]
        cells.append(CellReading(row, col, box, entropy, top))
    return cells


def heat_map(image: Image.Image, reading: PageReading, *, zoom: float | None = None) -> Image.Image:
    """The page with a colour over each cell (how sure it is that something starts there) and the
    most probable token written into it.

    Args:
        zoom: enlargement of the page; default: cells at least 44 px wide, where the picture stays
            below 4,000 px.
    """
    first = reading.cells[0].box
    cell_width, cell_height = first[2] - first[0], first[3] - first[1]
    if zoom is None:
        zoom = min(max(1.0, 44 / cell_width), max(1.0, 4000 / max(image.size)))
    size = (round(image.width * zoom), round(image.height * zoom))
    page = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    overlay = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(overlay)
    font = ImageFont.load_default(max(8, int(cell_height * zoom * 0.36)))
    colours = _colours()
    for cell in reading.cells:
        text, index, probability = cell.tokens[0]
        box = tuple(round(value * zoom) for value in cell.box)
        if box[0] >= size[0] or box[1] >= size[1]:
            continue  # padding beyond the page
        blank = sum(p for _, i, p in cell.tokens if i == reading.blank_id)
        strength = 1 - blank if index == reading.blank_id else max(probability, 1 - blank)
        red, green, blue = colours[int(np.clip(strength, 0, 1) * 255)]
        draw.rectangle(box, fill=(red, green, blue, int(110 * strength)))
        if index != reading.blank_id:
            draw.text(
                (box[0] + 1, box[1] + 1), text.strip() or "·", font=font, fill=(0, 0, 120, 255)
            )
    return Image.alpha_composite(page.convert("RGBA"), overlay).convert("RGB")


def _colours() -> list[tuple[int, int, int]]:
    from matplotlib import colormaps

    table = colormaps["YlOrRd"](np.linspace(0, 0.6, 256))[:, :3] * 255
    return [(int(r), int(g), int(b)) for r, g, b in table]
