"""Two vision encoders from scratch, and the one that ``smol`` has, on the same unseen pages.

    python -m benchmarks.encoders --seconds 340       # about 15 minutes of one core

The two learn by the grounded loss alone (the ``tiny`` recipe's first stage: mostly forms, one
font) for the same CPU time. ``smol``'s starts from a public line recogniser and never saw these
pages.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from alignvlm.ask import load_model
from alignvlm.data.reading import reading_accuracy
from alignvlm.data.render import RenderSpec
from alignvlm.data.sources import MixedSource, RenderSource
from alignvlm.shipped import build
from alignvlm.train.recipe import load_recipe
from alignvlm.train.run import build_model
from alignvlm.train.stages import build_mix

from .training import train_first_stage

RESULTS = Path(__file__).parent / "results" / "encoders.json"
TEST_SEED = 800_000
SIGLIP = {
    "model_type": "siglip_vision_model", "image_size": 196, "patch_size": 14,
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 4, "vision_use_head": False,
}  # fmt: skip
ENCODERS: dict[str, list[str]] = {
    "siglip": [
        f"model.vision={json.dumps(SIGLIP)}",
        "model.tiling.tile_width=196",
        "stages.0.train.vision=0.001",
    ],
    "convnext": [],
}
"""Encoder to what it changes in ``recipes/tiny.yaml``. Cells are 14 px; SigLIP's tiles are
squares, so a page has two."""


class Deadline(TrainerCallback):
    """Stops after so many CPU seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= time.process_time() > self.end


def unseen(pages: int) -> MixedSource:
    """As many pages of each layout, drawn from no training seed."""
    size = {"font_px": (28, 28), "fonts": ("DejaVuSans",)}
    specs = [RenderSpec(layout=name, **size) for name in ("form", "receipt", "text", "table")]  # type: ignore[arg-type]
    return MixedSource([RenderSource(spec, pages, seed=TEST_SEED) for spec in specs])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=340)
    parser.add_argument("--pages", type=int, default=6, help="of each layout")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"CPU seconds": asked.seconds, "pages of each layout": asked.pages}
    for name in (*ENCODERS, "smol"):
        if name == "smol":
            model, processor = load_model(build("smol"))
            steps = None
        else:
            # long enough that the rate has not decayed when the time is over
            keys = ["stages.0.steps=4000", "stages.0.warmup_ratio=0.0125", *ENCODERS[name]]
            recipe = load_recipe("tiny", keys)
            model, processor = build_model(recipe)
            source = build_mix(recipe.stages[0], recipe.seed)
            stop = Deadline(asked.seconds)
            steps = train_first_stage(recipe, model, processor, source, stop)
        read = reading_accuracy(model, processor, unseen(asked.pages), 4 * asked.pages)
        size = sum(p.numel() for p in model.model.vision_model.parameters())
        found[name] = {
            "text cells right": round(read.text, 3), "blank cells right": round(read.blank, 3),
            "text cells": read.text_cells, "steps": steps, "parameters": size,
        }  # fmt: skip
        print(name, found[name], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
