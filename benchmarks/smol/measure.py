"""What ``smol`` reaches on rendered pages it never saw: reading and forms, with intervals.

Benchmarks are measured by ``alignvlm eval run``, PDFs by ``alignvlm data read``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from alignvlm.analysis import read_page
from alignvlm.ask import ask, load_model
from alignvlm.data.ground import page_targets
from alignvlm.data.render import RenderSpec, render_page
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


def main() -> None:
    asked = arguments(__doc__, pages=12, threads=2)
    torch.set_num_threads(asked.threads)
    model, processor = load_model(build("smol"))
    results: dict[str, Any] = {"pages of each kind": asked.pages}
    for size in (20, 24, 30):
        for layout in LAYOUTS:
            spec = RenderSpec(layout=layout, width=600, height=300, font_px=(size, size))
            pages = [render_page(spec, SEED + number) for number in range(asked.pages)]
            cells, order = zip(*(read(model, processor, page) for page in pages), strict=True)
            name = f"{layout}, {size} px"
            results[name] = {"cells": interval(list(cells)), "in order": interval(list(order))}
            print(name, results[name], flush=True)
    spec = RenderSpec(layout="form", width=600, height=300, font_px=(24, 24))
    scores = []
    for number in range(2 * asked.pages):
        page = render_page(spec, SEED + 10_000 + number)
        for fact in page.facts[:2]:
            said = ask(model, processor, [page.image], fact.question, max_new_tokens=20).text
            scores.append((anls(said, [fact.answer]), 1.0))
    results["forms, ANLS"] = interval(scores)
    print("forms, ANLS", results["forms, ANLS"], f"{len(scores)} questions")
    Path("models/smol/scores.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
