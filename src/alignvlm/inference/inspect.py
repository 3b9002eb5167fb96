"""P_vocab over a page: what each visual token says, as data and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..connectors import AlignConnector
from ..errors import ConfigError
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from ..tiling import Grid, page_order
from .prompt import encode_pages


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
        order: for an encoder that reads: rows of cells in reading order, as indices into
            ``cells``; else ``None``, and the grid's rows are the page's.
    """

    rows: int
    cols: int
    cells: list[CellReading]
    blank_id: int | None
    entropy: float
    effective_vocab: float
    order: list[list[int]] | None = None

    def lines(self) -> list[list[CellReading]]:
        """The visual tokens that say something, row after row as they are read."""
        order = self.order
        if order is None:
            order = [list(range(r * self.cols, (r + 1) * self.cols)) for r in range(self.rows)]
        lines = [[self.cells[i] for i in row] for row in order]
        return [
            line
            for row in lines
            if (line := [cell for cell in row if cell.tokens[0][1] != self.blank_id])
        ]

    def ids(self) -> list[list[int]]:
        """The most probable id of each cell, row by row."""
        best = [cell.tokens[0][1] for cell in self.cells]
        return [best[r * self.cols : (r + 1) * self.cols] for r in range(self.rows)]

    def text(self, tokenizer: Any) -> str:
        """What the page says by the most probable token of each cell; blank cells dropped."""
        return "\n".join(
            tokenizer.decode([cell.tokens[0][1] for cell in line]).strip() for line in self.lines()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@torch.no_grad()
def read_page(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    image: Image.Image,
    k: int = 5,
    encoded: Encoded | None = None,
) -> PageReading:
    """P_vocab of each visual token of a page: its ``k`` most probable tokens.

    Args:
        encoded: the page as :func:`alignvlm.inference.prompt.encode_pages` gave it, if it was
            encoded before.

    Raises:
        ConfigError: the connector is not ALIGN, so there is no P_vocab.
    """
    connector = model.model.connector
    if not isinstance(connector, AlignConnector):
        raise ConfigError(
            f"inspect needs the 'align' connector; this model has {model.config.connector.type!r}"
        )
    if encoded is None:
        encoded = encode_pages(model, processor, [image])
    grid = Grid(*encoded.image_grids[0, :2].tolist())
    features = encoded.features[: grid.tiles]  # a thumbnail has no place
    entropy = connector.entropy(features).flatten()
    token_rows, token_cols = features.shape[1:3]
    rows, cols = grid.rows * token_rows, grid.cols * token_cols
    places = page_order(grid, token_rows, token_cols).to(entropy.device)
    probabilities, ids = (
        top.flatten(0, 2)[places].tolist() for top in connector.top_tokens(features, k)
    )
    scale = model.config.page_scale(image.size, grid)
    height = model.config.tile_height / token_rows / scale
    width = model.config.tile_width / token_cols / scale
    cells = []
    for index, (own, p, nats) in enumerate(zip(ids, probabilities, entropy[places].tolist())):
        row, col = divmod(index, cols)
        box = (col * width, row * height, (col + 1) * width, (row + 1) * height)
        top = [(processor.tokenizer.decode([i]), i, q) for i, q in zip(own, p)]
        cells.append(CellReading(row, col, box, nats, top))
    order = None
    if encoded.pages:
        page = encoded.pages[0]
        for cell, box in zip(page.cells.tolist(), (page.boxes / scale).tolist()):
            cells[cell] = replace(cells[cell], box=tuple(box))
        order = [page.cells[page.row == row].tolist() for row in range(len(page.rows))]
    return PageReading(
        rows=rows,
        cols=cols,
        cells=cells,
        blank_id=model.config.blank_token_id,
        entropy=entropy.mean().item(),
        effective_vocab=entropy.exp().mean().item(),
        order=order,
    )


def heat_map(image: Image.Image, reading: PageReading, *, zoom: float | None = None) -> Image.Image:
    """The page with a colour over each cell (how sure it is that something starts there) and the
    most probable token written into it.

    Args:
        zoom: enlargement of the page; default: cells at least 44 px wide, where the picture stays
            below 4,000 px.
    """
    boxes = np.array([cell.box for cell in reading.cells])
    cell_width, cell_height = np.median(boxes[:, 2:] - boxes[:, :2], axis=0).tolist()
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
        alpha = int(110 * strength)
        if not alpha:
            continue  # a blank cell must not wipe out the box of a token that reaches over it
        red, green, blue = colours[int(np.clip(strength, 0, 1) * 255)]
        draw.rectangle(box, fill=(red, green, blue, alpha))
        if index != reading.blank_id:
            draw.text(
                (box[0] + 1, box[1] + 1), text.strip() or "·", font=font, fill=(0, 0, 120, 255)
            )
    return Image.alpha_composite(page.convert("RGBA"), overlay).convert("RGB")


def _colours() -> list[tuple[int, int, int]]:
    from matplotlib import colormaps

    table = colormaps["YlOrRd"](np.linspace(0, 0.6, 256))[:, :3] * 255
    return [(int(r), int(g), int(b)) for r, g, b in table]
