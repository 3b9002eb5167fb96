"""What ALIGN reads on a page, clean and under noise, as plain data for a browser to draw.

Nothing here writes HTML: ``overlay.js`` builds the drawing from this data node by node, so a token
that looks like markup stays text.
"""

from __future__ import annotations

import base64
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
FAINTEST = 0.1
"""Cells less likely than this to hold text are left out of the drawing."""
FEWEST_IDS = 16
"""The vocabulary slider stops before fewer ids than this."""
LONGEST_SIDE = 1600
"""Larger pages are drawn scaled down to this many px."""


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
    """One page of a document, and what was found out about it so far.

    Args:
        image: the page.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._encoded: Encoded | None = None
        self._clean: Reading | None = None
        self._mass: Tensor | None = None

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
        sigma: of the noise on the encoder's features, in their own units.
        kept, vocabulary: ids that P_vocab was restricted to, and ids that it has.
    """

    image: Image.Image
    whole: Reading
    clean: Reading
    noisy: Reading | None
    sigma: float
    kept: int
    vocabulary: int

    @property
    def cosine_distance(self) -> float | None:
        """Between clean and noisy visual tokens; mean over the tokens, as ``noise_sweep`` says."""
        if self.noisy is None:
            return None
        similarity = F.cosine_similarity(self.clean.output, self.noisy.output, dim=-1)
        return 1 - similarity.mean().item()

    def changed_by_noise(self) -> set[int]:
        """Cells whose most probable token is another one under noise."""
        return set() if self.noisy is None else _changed(self.clean.page, self.noisy.page)

    def changed_by_pruning(self) -> set[int]:
        """Cells whose most probable token is another one than by the whole vocabulary."""
        return _changed(self.whole.page, self.clean.page)


def halvings(size: int) -> int:
    """How often a vocabulary of ``size`` ids can be halved before fewer than 16 are left."""
    return max(0, int(math.log2(size / FEWEST_IDS)))


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
    return NoiseComparison(view.image, whole, clean, noisy, sigma, keep, size)


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


def _changed(before: PageReading, after: PageReading) -> set[int]:
    pairs = enumerate(zip(before.cells, after.cells, strict=True))
    return {index for index, (a, b) in pairs if a.tokens[0][1] != b.tokens[0][1]}


def strength(cell: CellReading, blank_id: int | None) -> float:
    """How sure it is that a token starts in a cell, 0 to 1; the heat map's colour."""
    _, index, probability = cell.tokens[0]
    written = 1 - sum(p for _, i, p in cell.tokens if i == blank_id)
    return min(1.0, max(0.0, written if index == blank_id else max(probability, written)))


def payload(comparison: NoiseComparison, tokenizer: Any) -> dict[str, Any]:
    """A comparison as ``overlay.js`` draws it; JSON.

    A side's ``cells`` are ``[row, column, strength, changed, entropy, [[token, probability]]]``:
    only those that say something, or say something else under noise.
    """
    changed = comparison.changed_by_noise()
    sides = [_side("Clean", comparison.clean.page, comparison, changed, tokenizer, False)]
    if comparison.noisy is not None:
        name = f"Noise σ = {comparison.sigma:g}"
        sides.append(_side(name, comparison.noisy.page, comparison, changed, tokenizer, True))
    # a token that was read has a box of its own
    sizes = sorted((c.box[2] - c.box[0], c.box[3] - c.box[1]) for c in comparison.whole.page.cells)
    return {
        "image": _data_url(comparison.image),
        "size": comparison.image.size,
        "cell": list(sizes[len(sizes) // 2]),
        "sides": sides,
        "facts": _facts(comparison),
    }


def _side(
    name: str,
    page: PageReading,
    comparison: NoiseComparison,
    changed: set[int],
    tokenizer: Any,
    mark: bool,
) -> dict[str, Any]:
    width, height = comparison.image.size
    cells = []
    for index, cell in enumerate(page.cells):
        sure = strength(cell, page.blank_id)
        outside = cell.box[0] >= width or cell.box[1] >= height  # padding beyond the page
        if outside or (sure < FAINTEST and index not in changed):
            continue
        tokens = [
            ["blank" if i == page.blank_id else text, round(p, 4), int(i == page.blank_id)]
            for text, i, p in cell.tokens
        ]
        entropy = round(cell.entropy, 2)
        marked = int(mark and index in changed)
        cells.append([cell.row, cell.col, round(sure, 3), marked, entropy, tokens])
    return {"name": name, "cells": cells, "text": page.text(tokenizer)}


def _facts(comparison: NoiseComparison) -> list[list[str]]:
    """What the numbers above the drawing say: name and value."""
    page = comparison.clean.page
    count = len(page.cells)
    written = sum(cell.tokens[0][1] != page.blank_id for cell in page.cells)
    facts = [
        ["visual tokens", f"{count:,}"],
        ["not blank", f"{written:,}"],
        ["entropy", f"{page.entropy:.2f} nats"],
    ]
    if comparison.kept != comparison.vocabulary:
        moved = len(comparison.changed_by_pruning())
        facts.append(["vocabulary", f"{comparison.kept:,} of {comparison.vocabulary:,}"])
        facts.append(["changed by pruning", f"{moved:,} of {count:,}"])
    distance = comparison.cosine_distance
    if distance is not None:
        facts.append(["changed by noise", f"{len(comparison.changed_by_noise()):,} of {count:,}"])
        facts.append(["cosine distance", f"{distance:.4f}"])
    return facts


def _data_url(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
