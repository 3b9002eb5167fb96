"""What ``smol`` reaches on pages it never saw: reading, forms, blank dropping, with intervals.

Answers about benchmarks are measured by ``alignvlm eval``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from alignvlm.analysis import read_page
from alignvlm.ask import ask, load_model
from alignvlm.data.benchmarks import DeepFormSource
from alignvlm.data.ground import as_words, page_targets
from alignvlm.data.render import Page, RenderSpec, render_page
from alignvlm.eval.metrics import anls
from alignvlm.shipped import build
from alignvlm.tiling import Grid

from .common import arguments

SEED = 5_000_000
"""Pages from here on; training drew below 2³¹ at random, so a collision is all but impossible."""
LAYOUTS = ("text", "form", "receipt", "table")
BOOTSTRAPS = 2000


def interval(values: list[tuple[float, float]]) -> list[float]:
    """Ratio of sums over pages and its 95 % bootstrap interval."""
    pairs, rng = np.array(values), np.random.default_rng(0)
    drawn = pairs[rng.integers(0, len(pairs), (BOOTSTRAPS, len(pairs)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return [round(float(v), 3) for v in (pairs[:, 0].sum() / pairs[:, 1].sum(), low, high)]


def read(model: Any, processor: Any, page: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Cells and tokens in reading order that are right, each with how many there are."""
    reading = read_page(model, processor, page.image, 1)
    layout = model.config.tile_token_grid
    grid = Grid(reading.rows // layout[0], reading.cols // layout[1])
    size = page.image.size
    targets = page_targets(page.words, size, grid, model.config, processor.tokenizer).targets
    blank = model.config.blank_token_id
    said = torch.tensor(reading.ids())
    text = targets != blank
    wanted, got = targets[text].tolist(), said[said != blank].tolist()
    errors = Levenshtein.distance(wanted, got)
    cells = (float((said == targets)[text].sum()), float(text.sum()))
    return cells, (max(0.0, len(wanted) - errors), len(wanted))


def rendered(model: Any, processor: Any, pages: int) -> Iterator[tuple[str, Any]]:
    """Reading of pages of each layout in three sizes."""
    for size in (20, 24, 30):
        for layout in LAYOUTS:
            spec = RenderSpec(layout=layout, width=600, height=300, font_px=(size, size))
            made = (render_page(spec, SEED + number) for number in range(pages))
            yield f"{layout}, {size} px", reading(model, processor, made)


def contracts(model: Any, processor: Any, data: Path, pages: int) -> Iterator[tuple[str, Any]]:
    """Reading of the first pages of DeepForm's validation contracts: their print is small."""
    for dpi in (144, 216):
        source = DeepFormSource(data / "deepform", "val", max_pages=1, dpi=dpi)
        first = {source.row(i).key: i for i in reversed(range(len(source)))}
        made = []
        for index in sorted(first.values())[:pages]:
            record = source[index]
            assert record.words is not None
            made.append(Page(record.images[0], tuple(as_words(record.words[0])), (), "pdf"))
        yield f"contracts (DeepForm val), {dpi} dpi", reading(model, processor, made)


def reading(model: Any, processor: Any, pages: Iterable[Page]) -> dict[str, list[float]]:
    cells, order = zip(*(read(model, processor, page) for page in pages), strict=True)
    return {"cells": interval(list(cells)), "in order": interval(list(order))}


def forms(model: Any, processor: Any, pages: int) -> Iterator[tuple[str, Any]]:
    """Answers about forms, with blank dropping and with every cell kept."""
    spec = RenderSpec(layout="form", width=600, height=300, font_px=(24, 24))
    threshold = model.config.blank_threshold
    for name, value, count in (("", threshold, pages), (", all cells kept", None, pages // 4)):
        model.config.blank_threshold = value
        scores, kept, first = [], [], []
        for number in range(max(2, count)):
            page = render_page(spec, SEED + 10_000 + number)
            for fact in page.facts[:2]:
                said = ask(model, processor, [page.image], fact.question, max_new_tokens=20)
                scores.append((anls(said.text, [fact.answer]), 1.0))
                kept.append(said.kept_visual_tokens / said.visual_tokens)
            # the encoder remembers the page: what remains is ALIGN and the language model
            first.append(said.prefill_ms)
        yield (
            f"forms{name}",
            {
                "ANLS": interval(scores),
                "questions": len(scores),
                "visual tokens kept": round(float(np.mean(kept)), 3),
                "ms to the first token, page read before": round(float(np.median(first))),
            },
        )
    model.config.blank_threshold = threshold


def main() -> None:
    asked = arguments(__doc__, pages=12, threads=2)
    torch.set_num_threads(asked.threads)
    model, processor = load_model(build("smol"))
    results: dict[str, Any] = {"pages of each kind": asked.pages}
    for name, value in chain(
        rendered(model, processor, asked.pages),
        forms(model, processor, 2 * asked.pages),
        contracts(model, processor, asked.data, asked.pages),
    ):
        results[name] = value
        print(name, value, flush=True)
    Path("models/smol/scores.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
