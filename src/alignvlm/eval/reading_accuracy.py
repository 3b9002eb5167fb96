"""How well unseen pages are read: token-reading accuracy, and the loss of their answers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..connectors import AlignConnector
from ..data import encode
from ..data.collate import Collator
from ..data.ground import MAX_SHIFT, as_words, line_middles, tile_targets
from ..data.records import Record
from ..data.sources import Source
from ..documents.words import Word
from ..errors import ConfigError
from ..model.config import AlignVLMConfig
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..tiling import Grid

SIZES = (8, 12, 16, 20, 24, 28, 32)
"""Borders between the buckets of text height, px; the last has no upper end."""


class PageAccuracy(NamedTuple):
    """Cells of one page.

    Attributes:
        document: pages with the same one belong together and are not independent.
        text, blank: ``(right, all)`` cells in which a token starts, and in which none does.
        sizes: ``(right, all)`` text cells of each bucket of ``SIZES``.
    """

    document: str
    text: tuple[int, int]
    blank: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]


class ReadingAccuracy(NamedTuple):
    """Shares of cells read right, and the loss on P_vocab.

    Attributes:
        text: of cells in which a token starts. Tokens a pruned vocabulary lacks count as wrong.
        blank: of cells in which none starts.
        loss: mean negative log-likelihood of text cells, nats; tokens outside a pruned vocabulary
            are left out.
        text_cells, blank_cells: how many there were.
        pages: the same counts page by page.
    """

    text: float
    blank: float
    loss: float
    text_cells: int
    blank_cells: int
    pages: tuple[PageAccuracy, ...] = ()

    def __str__(self) -> str:
        return (
            f"token-reading accuracy {self.text:.3f} on {self.text_cells} text cells, "
            f"{self.blank:.3f} on {self.blank_cells} blank cells; loss {self.loss:.2f} nats"
        )

    def by_size(self) -> dict[str, tuple[int, int]]:
        """``(right, all)`` text cells by text height in px, such as ``"16-20"``; no empty buckets.

        The height is that of the tallest word of the line, as the model sees it: after the page is
        fitted into its tiles. Words that a PDF or OCR gives are as tall as their ink, rendered ones
        as their font's ascent and descent, about 1.2 times the font size.
        """
        result = {}
        for number, name in enumerate(size_names()):
            right = sum(page.sizes[number][0] for page in self.pages)
            cells = sum(page.sizes[number][1] for page in self.pages)
            if cells:
                result[name] = (right, cells)
        return result


def size_names() -> list[str]:
    """Names of the buckets of text height, px."""
    middle = [f"{low}-{high}" for low, high in pairwise(SIZES)]
    return [f"<{SIZES[0]}", *middle, f">={SIZES[-1]}"]


@torch.no_grad()
def reading_accuracy(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Source,
    pages: int,
    *,
    progress: bool = False,
) -> ReadingAccuracy:
    """Read the first ``pages`` records of a source that carries words.

    Args:
        progress: show a bar on stderr.

    Raises:
        ConfigError: the connector is not ALIGN, or no page has words.
    """
    align = model.model.connector
    if not isinstance(align, AlignConnector):
        raise ConfigError("token-reading accuracy needs the 'align' connector")
    was_training = model.training
    model.eval()
    found: list[PageAccuracy] = []
    nll: list[Tensor] = []
    count = min(pages, len(source))
    title = getattr(source, "name", "pages")
    for index in tqdm(range(count), desc=title, disable=not progress, unit="page"):
        record = source[index]
        if record.words is not None:
            read, loss = _read(model, align, processor, record)
            found += read
            nll.append(loss)
    model.train(was_training)
    text, blank = (
        (sum(page[kind][0] for page in found), sum(page[kind][1] for page in found))
        for kind in (1, 2)
    )
    if not text[1]:
        raise ConfigError("no page of the source has words to read")
    return ReadingAccuracy(
        text[0] / text[1],
        blank[0] / max(blank[1], 1),
        torch.cat(nll).mean().item(),
        text[1],
        blank[1],
        tuple(found),
    )


def _read(
    model: AlignVLMForConditionalGeneration,
    align: AlignConnector,
    processor: AlignVLMProcessor,
    record: Record,
) -> tuple[list[PageAccuracy], Tensor]:
    """Counts of a record's pages, and the losses of its text cells."""
    batch = encode.encode_images(record, processor)
    grids = batch["image_grids"]
    targets = encode.page_vocab_targets(record, grids, model.config, processor.tokenizer).flatten()
    features = model.model.encode_tiles(batch["pixel_values"].to(model.device), grids).flatten(0, 2)
    best = align.top_tokens(features, 1)[1][:, 0].cpu()
    blank = targets == model.config.blank_token_id
    text, right = (targets >= 0) & ~blank, best == targets
    pages, start = [], 0
    for heights in _heights(record, grids, model.config):
        here = slice(start, start + len(heights))
        start = here.stop
        tall = heights[text[here]].tolist()
        sizes = [[0, 0] for _ in range(len(SIZES) + 1)]
        for height, good in zip(tall, right[here][text[here]].tolist(), strict=True):
            bucket = sizes[bisect_right(SIZES, height)]
            bucket[0] += good
            bucket[1] += 1
        counts = [
            (int(right[here][kind[here]].sum()), int(kind[here].sum())) for kind in (text, blank)
        ]
        document = record.id.rsplit("#", 1)[0]
        pages.append(PageAccuracy(document, *counts, tuple((a, b) for a, b in sizes)))
    kept = text & align.keeps(targets.to(features.device)).cpu()
    chosen = targets[kept].to(features.device)
    result = align.mixture(align.hidden(features[kept]), None, chosen)
    assert result.target_logits is not None
    return pages, (result.logsumexp - result.target_logits).cpu()


def _heights(record: Record, grids: Tensor, config: AlignVLMConfig) -> Iterator[Tensor]:
    """Text height of each page's cells, px, in the order of ``encode.page_vocab_targets``."""
    layout = config.tile_token_grid
    assert layout is not None and record.words is not None
    sizes = encode.image_sizes(record)
    pages = zip(record.words, sizes, grids.tolist(), strict=True)
    for words, size, (rows, cols, thumbnail) in pages:
        grid = Grid(rows, cols)
        heights = text_heights(
            as_words(words),
            (rows * layout[0], cols * layout[1]),
            (config.tile_height / layout[0], config.tile_width / layout[1]),
            config.page_scale(size, grid),
        )
        flat = tile_targets(heights, grid).flatten()
        # thumbnails are not scored, but have cells
        yield torch.cat([flat, flat.new_zeros(config.tokens_per_tile)]) if thumbnail else flat


def text_heights(
    words: list[Word], cells: tuple[int, int], cell: tuple[float, float], scale: float
) -> Tensor:
    """Height of the text over each cell, px of the scaled page, ``[rows, cols]``; 0 where none is.

    A word's height is that of the tallest word of its line, since boxes of ink differ ("on" and
    "Of"). A cell to the left and a few to the right count too, where spaces and shifted tokens lie.

    Args:
        cells: rows and columns of cells on the page.
        cell: their height and width in px of the scaled page.
        scale: from page px to scaled px.
    """
    tallest: dict[int, float] = {}
    for word in words:
        height = (word.box[3] - word.box[1]) * scale
        tallest[word.line] = max(tallest.get(word.line, 0.0), height)
    middles = line_middles(words)
    result = torch.zeros(cells)
    for margin in (True, False):  # the words themselves last
        for word in words:
            row = int(middles[word.line] * scale // cell[0])
            first, last = (int(word.box[k] * scale // cell[1]) for k in (0, 2))
            if margin:
                first, last = max(first - 1, 0), last + MAX_SHIFT
            if 0 <= row < cells[0]:
                result[row, first : last + 1] = tallest[word.line]
    return result


@torch.no_grad()
def answer_loss(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Source,
    records: int,
) -> float:
    """Mean language-model loss a supervised token, nats, over the first ``records`` records.

    Raises:
        DataError: a record has no answer.
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for index in range(min(records, len(source))):
        samples = Collator(0)([encode.encode(source[index], processor)])
        batch = {key: value.to(model.device) for key, value in samples.items()}
        supervised = int((batch["labels"][:, 1:] >= 0).sum())
        total += model(**batch, skip_logits=True).loss.item() * supervised
        tokens += supervised
    model.train(was_training)
    return total / max(tokens, 1)
