"""One cell of the study: one variant, one seed, one JSON."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from alignvlm.data.sources import MixedSource
from alignvlm.eval.reading_accuracy import answer_loss
from alignvlm.inference.answerers import ModelAnswerer
from alignvlm.train.recipe import Recipe, load_recipe
from alignvlm.train.stages import build_source
from alignvlm.train.training import build_model

from . import data, measures
from .first_stage import train_first_stage
from .settings import VARIANTS, Settings
from .vision import vision_keys

COVERED_WEIGHT, SNIPPET_WEIGHT = 1.0, 5.0
"""One page with covered words to five forms, the paper's mix, and as many short strings: what
captions are to the paper's first stage."""


def recipe_of(variant: str, seed: int, folder: Path, settings: Settings) -> Recipe:
    """``recipes/study.yaml`` with the variant's keys, the study's folder and its size."""
    vision = {**vision_keys(settings), "weights": str(folder / "vision")}
    return load_recipe(
        "study",
        [
            f"model.text={folder / 'language-model'}",
            f"model.vision={json.dumps(vision)}",
            f"stages.0.steps={settings.samples // settings.batch}",
            f"stages.0.batch_size={settings.batch}",
            f"seed={seed}",
            *VARIANTS[variant],
        ],
    )


class Curve(TrainerCallback):
    """Scores held-out pages at given steps."""

    def __init__(self, steps: dict[int, int], measure: Any) -> None:
        self.steps, self.measure = steps, measure
        self.points: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            seen = self.steps[state.global_step]
            self.points.append({"samples": seen, **self.measure()})


def run_cell(
    variant: str, seed: int, folder: Path, results: Path, settings: Settings
) -> dict[str, Any]:
    """Train one variant and measure it; the JSON is written whole or not at all.

    Args:
        folder: with ``language-model``, ``vision`` and the passages; the model is saved here.
        results: where ``VARIANT-SEED.json`` goes.
    """
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    recipe = recipe_of(variant, seed, folder, settings)
    start, cpu = time.perf_counter(), time.process_time()
    model, processor = build_model(recipe)
    curve, spent = train(recipe, model, processor, folder, settings)
    trained = time.process_time() - cpu
    model.eval()
    saved = folder / "models" / f"{variant}-{seed}"
    shutil.rmtree(saved, ignore_errors=True)
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    result = {
        "variant": variant,
        "seed": seed,
        "settings": settings.to_dict(),
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "parameters": parameters(model),
        "visual_tokens": model.config.tokens_per_tile,
        "vocabulary": model.config.connector_vocab_size,
        "language_model": json.loads((folder / "language-model/study.json").read_text("utf-8")),
        "vision": json.loads((folder / "vision/study.json").read_text("utf-8")),
        "curve": curve,
        **measures.measure(model, processor, folder, settings),
        "train_cpu_s": round(trained - spent, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.perf_counter() - start, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(results / f"{variant}-{seed}.json", result)
    return result


def work(variant: str, seed: int, folder: Path, results: Path, settings: Settings) -> str:
    """:func:`run_cell`, and what came out in a line."""
    found = run_cell(variant, seed, folder, results, settings)
    scores = found["scores"]
    return (
        f"{variant} seed {seed}: ANLS {scores['anls']:.3f}, exact {scores['exact']:.3f}, "
        f"{found['cpu_s']} CPU s"
    )


def parameters(model: Any) -> dict[str, int]:
    """Of each part; tied ones once."""
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.vision_model.parameters())
    connector = sum(p.numel() for p in model.model.connector.parameters())
    return {"vision": vision, "connector": connector, "text": total - vision - connector}


def write_json(path: Path, value: Any) -> None:
    """Beside, then renamed: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(value, ensure_ascii=False, indent=1)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.rename(path)


def train(
    recipe: Recipe, model: Any, processor: Any, folder: Path, settings: Settings
) -> tuple[list[dict[str, float]], float]:
    """Train as ``alignvlm train`` does; returns the curve and the CPU seconds it cost."""
    stage = recipe.stages[0]
    forms = build_source(stage.sources[0], recipe.seed)
    mix = MixedSource(
        [forms, data.SnippetSource(len(forms), recipe.seed), data.CoveredSource(folder)],
        [stage.sources[0].weight, SNIPPET_WEIGHT, COVERED_WEIGHT],
        settings.samples,
        seed=recipe.seed,
    )
    spent = 0.0

    def point() -> dict[str, float]:
        nonlocal spent
        before, training = time.process_time(), model.training
        found = curve_point(model.eval(), processor, settings)
        model.train(training)
        spent += time.process_time() - before
        return found

    curve = Curve(settings.curve_steps(), point)
    train_first_stage(recipe, model, processor, mix, curve)
    return curve.points, spent


@torch.no_grad()
def curve_point(model: Any, processor: Any, settings: Settings) -> dict[str, float]:
    """Loss of the answers (nats a token) and scores on a few held-out forms."""
    asked = data.held_out_forms(settings.few)
    source = data.held_out_source(settings.few)
    loss = answer_loss(model, processor, source, settings.few)
    return {"loss": loss, **measures.score(ModelAnswerer(model, processor), asked)}
