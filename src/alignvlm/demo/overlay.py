"""What ALIGN reads on a page, clean and under noise, as plain data for a browser to draw.

Nothing here writes HTML: ``static/inside.js`` builds the drawing from this data node by node, so a
token that looks like markup stays text.
"""

from __future__ import annotations

import io
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..inference.inspect import CellReading, PageReading, read_page
from ..inference.noise import Noise
from ..inference.prompt import encode_pages
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from ..vocabulary.usage import features_mass, most_used, prunable, pruned_to

TOP_TOKENS = 5
NOISE_SEED = 0
FEWEST_IDS = 16
"""The vocabulary slider stops before fewer ids than this."""
LOUDEST, NOISE_STEPS = 2.5, 20
"""The noise slider ends at so many times the features' own size, and has so many steps."""


@dataclass(frozen=True)
class Reading:
    """What the connector makes of a page.

    Attributes:
        page: the most probable tokens of each cell.
        output: the visual tokens as the language model gets them, ``[n, D]``.
    """

    page: PageReading
    output: Tensor


class PageView:
    """One page of a document, and what was found out about it so far."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._encoded: Encoded | None = None
        self._clean: Reading | None = None
        self._mass: Tensor | None = None
        self._loudest: float | None = None

    def encoded(
        self, model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor
    ) -> Encoded:
        """The page through encoder and connector as they are, without noise; once."""
        if self._encoded is None:
            self._encoded = encode_pages(model, processor, [self.image])
        return self._encoded

    def clean(
        self, model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor
    ) -> Reading:
        """The page by the whole vocabulary, without noise."""
        if self._clean is None:
            prunable(model, 1)  # or nothing can be read
            self._clean = _read(model, processor, self.image, self.encoded(model, processor))
        return self._clean

    def loudest(
        self, model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor
    ) -> float:
        """Where a slider for σ should end: a round number, by the size of this page's features."""
        if self._loudest is None:
            features = self.encoded(model, processor).features.float()
            self._loudest = round_up(LOUDEST * float(features.square().mean().sqrt()))
        return self._loudest

    def most_used(
        self, model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor, keep: int
    ) -> Tensor:
        """The ``keep`` ids this page uses most, blank among them; int64, ascending.

        Raises:
            ConfigError: ``keep`` does not fit the vocabulary.
        """
        align = prunable(model, keep)
        if self._mass is None:
            features = self.encoded(model, processor).features
            self._mass = features_mass(align, features.flatten(0, 2))
        blank = model.config.blank_token_id
        return most_used(align, self._mass, keep, [] if blank is None else [blank])


@dataclass(frozen=True)
class NoiseComparison:
    """A page read by (a part of) the vocabulary, and once more under noise.

    Attributes:
        image: the page.
        whole: by the whole vocabulary, without noise.
        clean: by the ids kept, without noise.
        noisy: the same under noise; ``None`` without noise.
        kept, vocabulary: ids that P_vocab was restricted to, and ids that it has.
    """

    image: Image.Image
    whole: Reading
    clean: Reading
    noisy: Reading | None
    kept: int
    vocabulary: int

    @property
    def after(self) -> Reading | None:
        """With noise and pruning; ``None`` if there is neither."""
        if self.noisy is not None:
            return self.noisy
        return None if self.kept == self.vocabulary else self.clean

    @property
    def cosine_distance(self) -> float | None:
        """Between clean and noisy visual tokens; mean over the tokens, as ``noise_sweep`` says."""
        if self.noisy is None:
            return None
        similarity = F.cosine_similarity(self.clean.output, self.noisy.output, dim=-1)
        return 1 - similarity.mean().item()


def halvings(size: int) -> int:
    """How often a vocabulary of ``size`` ids can be halved before fewer than 16 are left."""
    return max(0, int(math.log2(size / FEWEST_IDS)))


def round_up(value: float) -> float:
    """To one significant digit: 0.21 becomes 0.3."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return round(math.ceil(value / unit - 1e-9) * unit, 12)


def compare(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    view: PageView,
    *,
    sigma: float = 0.0,
    keep: int | None = None,
) -> NoiseComparison:
    """Read a page without and with N(0, σ²) on the encoder's features.

    Args:
        sigma: standard deviation of the noise, in the features' own units (arXiv 2502.01341 uses
            3); 0: no noisy reading.
        keep: restrict P_vocab to the ids this page uses most. Their logits stay what they were;
            see :meth:`alignvlm.connectors.AlignConnector.prune`.

    Raises:
        ConfigError: the connector is not ALIGN, or ``keep`` does not fit its vocabulary.
    """
    whole = view.clean(model, processor)
    size = prunable(model, 1).w2.out_features
    keep = size if keep is None else keep
    clean, noisy = whole, None
    with ExitStack() as stack:
        if keep != size:
            ids = view.most_used(model, processor, keep)
            stack.enter_context(pruned_to(model, ids))
            clean = _read(model, processor, view.image)
        if sigma:
            noisy = _read(model, processor, view.image, noise=Noise(sigma, [NOISE_SEED]))
    return NoiseComparison(view.image, whole, clean, noisy, keep, size)


def _read(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    image: Image.Image,
    encoded: Encoded | None = None,
    noise: Noise | None = None,
) -> Reading:
    """What the page says, and what the language model is given, of one run of the encoder."""
    if encoded is None:
        encoded = encode_pages(model, processor, [image], noise=noise)
    page = read_page(model, processor, image, TOP_TOKENS, encoded)
    # a thumbnail's visual tokens follow the page's
    return Reading(page, encoded.tokens[0][: len(page.cells)].float())


def payload(comparison: NoiseComparison, tokenizer: Any) -> dict[str, Any]:
    """A comparison as the page draws it; JSON.

    ``cells`` are those that say something, before or after noise and pruning: ``box``, ``row`` and
    ``col`` in the grid of cells, ``before`` and ``after`` (``null`` without noise and pruning) as
    ``[token, probability, is blank]``, best first, and ``changed``.
    """
    whole = comparison.whole.page
    after = comparison.after and comparison.after.page
    width, height = comparison.image.size
    cells = []
    for index, cell in enumerate(whole.cells):
        other = None if after is None else after.cells[index]
        said = cell.tokens[0][1] != whole.blank_id
        says = other is not None and other.tokens[0][1] != whole.blank_id
        outside = cell.box[0] >= width or cell.box[1] >= height  # padding beyond the page
        if outside or not (said or says):
            continue
        box = (cell if said or other is None else other).box
        cells.append(
            {
                "box": [
                    round(edge, 1) for edge in (*box[:2], min(box[2], width), min(box[3], height))
                ],
                "row": cell.row,
                "col": cell.col,
                "before": _tokens(cell, whole.blank_id),
                "after": other and _tokens(other, whole.blank_id),
                "changed": other is not None and other.tokens[0][1] != cell.tokens[0][1],
            }
        )
    return {
        "size": comparison.image.size,
        "cells": cells,
        "before": whole.text(tokenizer),
        "after": None if after is None else after.text(tokenizer),
        "facts": _facts(comparison, cells),
    }


def _tokens(cell: CellReading, blank_id: int | None) -> list[list[Any]]:
    return [
        ["blank" if i == blank_id else text, round(p, 4), int(i == blank_id)]
        for text, i, p in cell.tokens
    ]


def _facts(comparison: NoiseComparison, cells: list[dict[str, Any]]) -> list[list[str]]:
    """The numbers beside the drawing: value, and what it counts."""
    page = comparison.whole.page
    count = len(page.cells)
    written = sum(cell.tokens[0][1] != page.blank_id for cell in page.cells)
    facts = [
        [f"{written:,} of {count:,}", "cells hold a token; the others are blank"],
        [f"{page.effective_vocab:.2f}", "tokens come into question per cell, on average"],
    ]
    if comparison.after is not None:
        changed = sum(cell["changed"] for cell in cells)
        says = "cell says" if changed == 1 else "cells say"
        facts.append([f"{changed:,}", f"{says} something else with these settings"])
    distance = comparison.cosine_distance
    if distance is not None:
        facts.append([f"{distance:.4f}", "cosine distance, mean over the cells"])
    return facts


def jpeg(image: Image.Image, side: int) -> bytes:
    """A page for the browser, no side longer than ``side`` px."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
