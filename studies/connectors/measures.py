"""What is measured on a trained cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from alignvlm.connectors import AlignConnector
from alignvlm.eval.metrics import METRICS, anls
from alignvlm.inference.answerers import ModelAnswerer, Query
from alignvlm.vocabulary.usage import most_used, pruned_to, vocabulary_mass

from . import data
from .noise_sweep import Place, noise_sweep, pixel_noise
from .pca import principal_components, spread
from .settings import SIGMAS, Settings
from .vocabulary_analysis import vocabulary_use

BATCH = 32
AXES = 10
"""Principal components looked at."""


def measure(model: Any, processor: Any, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything but the learning curve."""
    answerer = ModelAnswerer(model, processor)
    forms = data.held_out_forms(settings.test)
    white = Image.new("RGB", (data.WIDTH, data.HEIGHT), "white")
    found: dict[str, Any] = {
        "scores": score(answerer, forms),
        "blind": score(answerer, [replace(asked, page=white) for asked in forms]),
        "noise": noise(model, processor, forms[: settings.few]),
        "covered": {
            split: covered(answerer, data.covered_pages(folder, "test", split, settings.few))
            for split in ("easy", "hard")
        },
        "look_alikes": look_alikes(answerer, data.look_alikes(settings.few)),
    }
    if isinstance(model.model.connector, AlignConnector):
        found |= vocabulary(model, processor, forms, settings)
    return found


def answers(answerer: ModelAnswerer, asked: Sequence[data.Asked]) -> list[str]:
    """The model's answer to each question, greedily."""
    said: list[str] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        queries = [Query(a.id, [a.page], a.question, data.MAX_NEW_TOKENS) for a in part]
        said += [reply.text for reply in answerer.answer(queries)]
    return said


def score(answerer: ModelAnswerer, asked: Sequence[data.Asked]) -> dict[str, float]:
    """Exact matches and ANLS, 0..1."""
    said = answers(answerer, asked)
    pairs = list(zip(said, asked, strict=True))
    return {
        "exact": sum(text == a.answer for text, a in pairs) / len(pairs),
        "anls": sum(anls(text, (a.answer,)) for text, a in pairs) / len(pairs),
    }


def covered(answerer: ModelAnswerer, asked: Sequence[data.Asked]) -> dict[str, float]:
    """Exact matches and Jaccard index of covered words, as VCR-Wiki scores them."""
    metric = METRICS["vcr_exact_match"]
    said = answers(answerer, asked)
    verdicts = [metric.verdict(text, tuple(a.answer.split(", "))) for text, a in zip(said, asked)]
    jaccard = METRICS["vcr_jaccard"]
    return {"exact": metric.aggregate(verdicts), "jaccard": jaccard.aggregate(verdicts)}


def noise(model: Any, processor: Any, forms: Sequence[data.Asked]) -> dict[str, list[dict]]:
    """Scores and cosine distances for each σ, on features and on pixels.

    On features σ counts in their standard deviations: an encoder's units are its own, and those of
    this one's features change while it trains. Pixels lie between -1 and 1 everywhere.
    """
    images = [asked.page for asked in forms]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    found: dict[str, list[dict]] = {}
    places: tuple[Place, ...] = ("features", "pixels")
    for place in places:
        steps = noise_sweep(model.model, pixels, SIGMAS, place=place, relative=place == "features")
        rows = []
        for step in steps:
            if place == "features":
                scores = score(ModelAnswerer(model, processor, noise=step.absolute), forms)
            else:
                with pixel_noise(model.model, step.absolute, seed=0):
                    scores = score(ModelAnswerer(model, processor), forms)
            rows.append({**asdict(step), **scores})
        found[place] = rows
    return found


def look_alikes(answerer: ModelAnswerer, pairs: Sequence[data.LookAlike]) -> dict[str, float]:
    """How often common words are read, rare ones are, and rare ones are read as the common one."""
    common = answers(answerer, [pair.common for pair in pairs])
    rare = answers(answerer, [pair.rare for pair in pairs])
    size = len(pairs)
    return {
        "common_right": sum(t == p.common.answer for t, p in zip(common, pairs)) / size,
        "rare_right": sum(t == p.rare.answer for t, p in zip(rare, pairs)) / size,
        "rare_as_common": sum(t == p.common.answer for t, p in zip(rare, pairs)) / size,
    }


@torch.no_grad()
def vocabulary(
    model: Any, processor: Any, forms: Sequence[data.Asked], settings: Settings
) -> dict[str, Any]:
    """The averaged P_vocab, its principal components, and scores with fewer and fewer tokens."""
    pages = [asked.page for asked in forms[: settings.vocabulary]]
    align = model.model.connector
    mass, _ = vocabulary_mass(model, processor, pages)
    use = vocabulary_use(mass, processor.tokenizer)
    table = model.model.text_embedding()[: align.vocab_size]
    used = most_used(align, mass, max(2, use.for_99))
    few = forms[: settings.few]
    curve = []
    keep = align.vocab_size
    while keep >= 16:
        with pruned_to(model, most_used(align, mass, keep, [model.config.blank_token_id])):
            curve.append({"kept": keep, **score(ModelAnswerer(model, processor), few)})
        keep //= 2
    if not any(row["kept"] == use.for_99 for row in curve) and use.for_99 > 1:
        ids = most_used(align, mass, use.for_99, [model.config.blank_token_id])
        with pruned_to(model, ids):
            curve.append({"kept": use.for_99, **score(ModelAnswerer(model, processor), few)})
    points = principal_components(table, 2).project(table)
    inside = torch.zeros(len(table), dtype=torch.bool)
    inside[used] = True
    wide = spread(table, used, min(AXES, table.shape[1])).tolist()
    return {
        "vocabulary_use": asdict(use),
        "pruning": sorted(curve, key=lambda row: -row["kept"]),
        "pca": {
            "spread": [round(x, 4) for x in wide],
            "points": [[round(x, 3) for x in point] for point in points.tolist()],
            "used": used.tolist(),
        },
        "telemetry": align.telemetry(
            model.model.encode_tiles(
                processor.image_processor(pages[:16], return_tensors="pt")["pixel_values"]
            )
        )._asdict(),
    }
