"""Draws the tour's two figures from a real page, and how much a confidence means.

python docs/figures.py        # docs/images/page-to-tokens.png, blank-dropping.png, confidence.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from alignvlm.inference.ask import load_model
from alignvlm.reader.crops import Page

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parent
PAGE = DOCS.parent / "examples" / "pages" / "receipt.png"
CONFIDENCE = DOCS.parent / "benchmarks" / "results" / "smol" / "confidence.json"
"""Written by ``python -m training.smol.calibrate``."""
FADED = 0.27
"""The receipt at this share of its size, so that some characters are unsure."""
LEAST = 0.01
"""Other characters less probable than that, relative to the best, are not drawn."""
INK, SOFT, BLANK = "#1f4e79", "#c55a11", "#d9d9d9"


def faded_page() -> Image.Image:
    """The receipt as a poor copy."""
    page = Image.open(PAGE).convert("RGB")
    small = page.resize((round(page.width * FADED), round(page.height * FADED)), Image.BICUBIC)
    return small.resize(page.size, Image.BICUBIC)


def read(page: Image.Image) -> tuple[Any, Any, Any]:
    """Model, processor, and what was read."""
    model, processor = load_model("smol")
    tiles = processor.image_processor([page], return_tensors="pt")
    with torch.inference_mode():
        encoded = model.model.encode(tiles["pixel_values"], tiles["image_grids"])
    return model, processor, encoded.pages[0]


def bare(axes: Axes, title: str) -> None:
    """A picture without axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9, loc="left")


def doubtful_row(found: Any) -> int:
    """The row with the most doubt."""
    doubt = [float(row.characters.log_ratio.exp().sum()) for row in found.rows]
    return int(np.argmax(doubt))


def draw_lines(axes: Axes, page: Image.Image, model: Any) -> Any:
    """Where lines were found."""
    pixels = torch.from_numpy(np.array(page)).permute(2, 0, 1).float() / 127.5 - 1
    boxes = model.model.vision_model.find_lines(pixels)
    axes.imshow(page)
    for corners in boxes.corners():
        axes.add_patch(Polygon(corners, fill=False, edgecolor=SOFT, lw=1))
    bare(axes, "1  find: a rotated rectangle around each line")
    return pixels, boxes


def draw_crop(axes: Axes, pixels: Any, boxes: Any, row: Any) -> None:
    """The line with the least sure character cut out straight."""
    place = int(row.characters.log_ratio.exp().sum(1).argmax())
    left, top, right, bottom = row.boxes[place]
    distance = boxes.centre - np.array([(left + right) / 2, (top + bottom) / 2])
    outside = np.maximum(np.abs(distance) - boxes.size / 2, 0).sum(1)
    index = np.array([int(np.argmin(outside))])
    crop = Page(pixels).cut(boxes.take(index))[0].permute(1, 2, 0)
    axes.imshow(((crop + 1) / 2).clamp(0, 1).numpy(), aspect="auto")
    bare(axes, "2  cut out straight, 48 px high")


def draw_characters(axes: Axes, row: Any) -> None:
    """Characters, and what else each may be."""
    characters = row.characters
    axes.set_xlim(-0.5, len(characters.text) - 0.5)
    axes.set_ylim(-2.6, 0.6)
    for place, char in enumerate(characters.text):
        axes.text(place, 0, char, ha="center", va="center", fontsize=10, family="monospace")
        for rank, other in enumerate(characters.options[place][:2]):
            share = float(characters.log_ratio[place, rank].exp())
            if share < LEAST:
                continue
            axes.text(place, -0.9 - 0.8 * rank, other, ha="center", va="center", color=SOFT,
                      fontsize=10, family="monospace", alpha=min(1.0, 0.7 + share))  # fmt: skip
    bare(axes, "3  read: characters, below each what else it may be")
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_tokens(axes: Axes, page: Image.Image, found: Any, cell: tuple[int, int]) -> None:
    """Cells in which tokens begin."""
    axes.imshow(page, alpha=0.45)
    high, wide = cell
    across = -(-page.width // 160) * 160 // wide
    for place in found.cells:
        x, y = place % across * wide, place // across * high
        axes.add_patch(Rectangle((x, y), wide, high, color=INK, alpha=0.5, lw=0))
    bare(axes, f"4  spell: {len(found)} tokens, each in the cell where it begins")


def draw_q(axes: Axes, found: Any, number: int, tokenizer: Any) -> None:
    """What one token may be: P_vocab at its place."""
    row = [n for n in range(len(found)) if found.row[n] == number]
    chosen = max(row, key=lambda n: float(1 - found.q[n, 0]))
    ids, q = found.ids[chosen], found.q[chosen]
    kept = [(tokenizer.decode([int(i)]), float(v)) for i, v in zip(ids, q) if i >= 0 and v > 1e-3]
    names, values = zip(*kept[:5])
    axes.barh(range(len(names)), values, color=INK)
    axes.set_yticks(range(len(names)), [repr(name) for name in names], family="monospace")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("5  P_vocab of the least sure of them", fontsize=9, loc="left")


def page_to_tokens(out: Path) -> None:
    """The encoder's way from a page to tokens."""
    page = faded_page()
    model, processor, found = read(page)
    number = doubtful_row(found)
    figure = plt.figure(figsize=(9, 6.4), dpi=110, layout="constrained")
    grid = figure.add_gridspec(4, 2, height_ratios=(5, 1, 1.6, 2.2))
    pixels, boxes = draw_lines(figure.add_subplot(grid[:2, 0]), page, model)
    draw_tokens(figure.add_subplot(grid[:2, 1]), page, found, (20, 10))
    draw_crop(figure.add_subplot(grid[2, :]), pixels, boxes, found.rows[number])
    below = grid[3, :].subgridspec(1, 2, width_ratios=(2.2, 1))
    draw_characters(figure.add_subplot(below[0]), found.rows[number])
    draw_q(figure.add_subplot(below[1]), found, number, processor.tokenizer)
    figure.savefig(out / "page-to-tokens.png")
    plt.close(figure)


def blank_dropping(out: Path) -> None:
    """All cells of a page, and the few that the language model is given."""
    page = Image.open(PAGE).convert("RGB")
    _, processor, found = read(page)
    across, down = -(-page.width // 160) * 16, -(-page.height // 160) * 8
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), dpi=110, layout="constrained")
    cells = np.zeros((down, across))
    cells.flat[found.cells] = 1
    left.imshow(page, extent=(0, page.width / 10, page.height / 20, 0), aspect=2, alpha=0.35)
    left.pcolormesh(cells, cmap=matplotlib.colors.ListedColormap([BLANK, INK]), alpha=0.45,
                    edgecolors="white", lw=0.3)  # fmt: skip
    left.set_xlim(0, across)
    left.set_ylim(down, 0)
    bare(
        left, f"{down} x {across} = {down * across:,} visual tokens; in {len(found)} a token begins"
    )
    lines = [
        " ".join(processor.tokenizer.decode([int(i)]).strip() or "␣" for i in own)
        for own in (found.ids[found.row == n, 0] for n in range(len(found.rows)))
    ]
    for number, line in enumerate(lines):
        right.text(0.02, 1 - (number + 0.5) / len(lines), line, fontsize=8, family="monospace",
                   va="center", color=INK, transform=right.transAxes)  # fmt: skip
    total = len(found) + len(lines)
    bare(right, f"without blanks: {total} inputs, a newline after each of {len(lines)} lines")
    figure.savefig(out / "blank-dropping.png")
    plt.close(figure)


def confidence(out: Path) -> None:
    """Reliability, and risk against coverage, of what ``extract`` finds on SROIE's receipts."""
    found = json.loads(CONFIDENCE.read_text("utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), dpi=110, layout="constrained")
    bins = found["reliability"]
    left.plot([0, 1], [0, 1], color=BLANK)
    left.scatter(
        [own["confidence"] for own in bins], [own["right"] for own in bins],
        s=[8 + 2 * own["answers"] for own in bins], color=INK, alpha=0.7, linewidths=0,
    )  # fmt: skip
    left.set_xlabel("mean confidence")
    left.set_ylabel("share of values that are right")
    left.set_title("Reliability; a dot's area: values", fontsize=9, loc="left")
    right.plot(*zip(*found["curve"]), color=SOFT)
    right.set_xlabel("share of values that are kept, surest first")
    right.set_ylabel("wrong among them")
    right.set_ylim(bottom=0)
    right.set_title("Risk and coverage", fontsize=9, loc="left")
    figure.savefig(out / "confidence.png")
    plt.close(figure)


if __name__ == "__main__":
    page_to_tokens(DOCS / "images")
    blank_dropping(DOCS / "images")
    confidence(DOCS / "images")
