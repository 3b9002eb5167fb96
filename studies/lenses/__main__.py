"""Lenses: which words visual tokens stand for, asked of P_vocab and as others ask.

::

    python -m studies.lenses smol --receipts SROIE          # smol on crops of validation receipts
    python -m studies.lenses train align-fitted mlp-fitted  # models of the study, weights kept
    python -m studies.lenses train align-grounded-low-rank mlp-low-rank --device cuda
    python -m studies.lenses study                          # lenses of the models that are kept
    python -m studies.lenses report                         # docs/lenses.md from what is stored

``train`` and ``study`` take the pages of ``python -m studies.connectors``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "lenses"
STUDY = ROOT / "benchmarks" / "results" / "study"
SEED = 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m studies.lenses")
    found.add_argument("what", choices=["smol", "train", "study", "report"])
    found.add_argument("variants", nargs="*", help="of the connector study, to be trained")
    found.add_argument("--receipts", type=Path, help="SROIE, with train and val")
    found.add_argument("--count", type=int, default=64, help="pages that are looked at")
    found.add_argument("--text", type=int, default=5000, help="tokens of the contextual lens")
    found.add_argument("--size", type=int, default=4096, help="training pages")
    found.add_argument("--steps", type=int, default=512)
    found.add_argument("--batch", type=int, default=16, help="pages a step")
    found.add_argument("--outputs", action="store_true", help="study: no hidden states, seconds")
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    found.add_argument("--pages", type=Path, default=ROOT / "runs" / "study" / "pages.npz")
    found.add_argument("--models", type=Path, default=ROOT / "runs" / "lenses")
    found.add_argument("--results", type=Path, default=RESULTS)
    found.add_argument("--page", type=Path, default=ROOT / "docs" / "lenses.md")
    return found


def main() -> None:
    """Do what is asked."""
    options = parser()
    asked = options.parse_args()
    if asked.what == "smol":
        if asked.receipts is None:
            options.error("smol is looked at on real receipts: --receipts SROIE")
        smol(asked)
    elif asked.what == "report":
        from .report import write

        print(write(asked.results, asked.page))
    elif not asked.pages.exists():
        options.error(f"{asked.pages} is not there: python -m studies.connectors run makes it")
    elif asked.what == "train":
        train_all(asked)
    else:
        study(asked)


def smol(asked: argparse.Namespace) -> None:
    """Look into ``smol``: the page's truth is the receipt's transcription."""
    from alignvlm.inference.loading import load_model

    from ..connectors import drawn
    from .look import Layers, corpus, look_model

    model, processor = load_model("smol", device=asked.device)
    rng, receipts = np.random.default_rng(SEED), asked.receipts
    crops = (drawn.receipt_crop(f, rng) for f in sorted((receipts / "val" / "box").iterdir()))
    pages = [crop for crop in crops if crop is not None][: asked.count]
    seen = (drawn.receipt_crop(f, rng) for f in sorted((receipts / "train" / "box").iterdir()))
    lines = (crop.text for crop in seen if crop is not None)
    layers = Layers(model, model.model.language_model)
    tokenizer = processor.tokenizer
    texts = corpus(layers, model.get_input_embeddings().weight, lines, tokenizer, asked.text)
    found, truth = look_model(model, processor, pages, texts)
    facts = {"model": "smol", "data": "crops of SROIE's validation receipts"}
    facts |= {"text": len(texts.ids)}
    _store(asked.results / "smol.json", facts, found, truth, tokenizer.decode, len(tokenizer))


def train_all(asked: argparse.Namespace) -> None:
    """Train variants of the connector study and keep their weights."""
    from ..connectors.settings import Cell
    from .trained import train

    bench = _bench(asked)
    for variant in asked.variants:
        cell = Cell(variant, asked.size, SEED, asked.steps, asked.batch)
        print(train(bench, cell, STUDY, asked.models))


def study(asked: argparse.Namespace) -> None:
    """Look into the kept models, half of the pages drawn and half crops of real receipts."""
    from .look import HostTokens, LeanLayers, corpus, look_study
    from .trained import load

    bench = _bench(asked)
    pages = bench.pages
    half = asked.count // 2
    own = [n for part in ("test", "receipts") for n in pages.of_part(part)[:half]]
    lines = [pages.meta[n]["text"] for n in pages.of_part("train")]
    for folder in sorted(file.parent for file in asked.models.glob("*/facts.json")):
        model = load(bench, folder, STUDY)
        tokenizer, table = HostTokens(model.batcher), bench.language.table
        layers = LeanLayers(bench.language)
        texts = None if asked.outputs else corpus(layers, table, lines, tokenizer, asked.text)
        found, truth = look_study(model, own, texts)
        facts = {"model": folder.name, "data": "held-out pages of the connector study"}
        file = asked.results / f"{folder.name}.json"
        facts |= model.facts
        _store(file, facts, found, truth, tokenizer.decode, len(table))


def _bench(asked: argparse.Namespace) -> Any:
    from alignvlm.weights.resolve import resolve

    from ..connectors.cell import Bench

    return Bench(asked.pages, Path(resolve("smollm2")), asked.device)


def _store(
    file: Path, facts: dict[str, Any], found: Any, truth: Any, decode: Any, vocabulary: int
) -> None:
    from ..connectors.cell import write_json
    from .score import Judge, examples, scored

    result = scored(found, truth, Judge([decode([i]) for i in range(vocabulary)]))
    read = int(np.bincount(truth.page).argmax())
    rows = examples(found, truth, result["lenses"], decode, read)
    write_json(file, {**facts, **result, "examples": rows})
    print(file)


if __name__ == "__main__":
    main()
