"""Which vision encoder learns to read soonest: the same pages, the same CPU seconds.

A SigLIP transformer and a ConvNeXt start from nothing and see pages through the grounded loss
alone; ``smol`` itself reads the same unseen pages beside them.
"""

from __future__ import annotations

import csv
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import SaveStrategy

from alignvlm.ask import load_model
from alignvlm.data.collate import Collator
from alignvlm.data.reading import reading_accuracy
from alignvlm.data.render import RenderSpec
from alignvlm.data.sources import RenderSource
from alignvlm.shipped import build
from alignvlm.train.recipe import load_recipe
from alignvlm.train.run import build_model
from alignvlm.train.stages import (
    StageDataset,
    StageTrainer,
    build_mix,
    set_trainable,
    training_arguments,
)

from .common import OUT, arguments

LAYOUTS = ("form", "receipt", "text", "table")
UNSEEN = 9_000_000
RESULTS = Path("benchmarks/results")
ENCODERS = {
    "siglip, 5.8 M, patches of 14 px": (
        "{model_type: siglip_vision_model, image_size: 196, patch_size: 14, hidden_size: 256, "
        "intermediate_size: 1024, num_hidden_layers: 7, num_attention_heads: 4, "
        "vision_use_head: false}",
        196,
    ),
    "convnext, 1.4 M, cells of 14 px": (
        "{model_type: convnext, image_size: [196, 392], patch_size: 7, num_stages: 2, "
        "hidden_sizes: [64, 192], depths: [2, 4], layer_scale_init_value: 0.1}",
        392,
    ),
}


class Deadline(TrainerCallback):
    """Ends training when its CPU seconds are spent."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = time.process_time() >= self.end


def pages(layout: str) -> RenderSpec:
    return RenderSpec(layout=layout, width=392, height=196, font_px=(24, 28), random_text=0.15)


def trained(vision: str, width: int, seconds: float) -> tuple[Any, Any, int]:
    """A model whose encoder and ALIGN saw pages for so long, and how many steps that was."""
    sources = ", ".join(
        f"{{type: render, page: {{layout: {layout}, width: 392, height: 196, "
        "font_px: [24, 28], random_text: 0.15}}" for layout in LAYOUTS
    )  # fmt: skip
    recipe = load_recipe(
        "tiny",
        [
            f"model.vision={vision}",
            f"model.tiling={{tile_height: 196, tile_width: {width}, max_tiles: 4}}",
            "model.connector.kept_tokens=8000",
            f"stages.alignment.sources=[{sources}]",
            "stages.alignment.steps=4000",
            "stages.alignment.warmup_ratio=0.01",
            "stages.alignment.scheduler=constant_with_warmup",
        ],
    )
    stage = recipe.stages[0]
    model, processor = build_model(recipe)
    set_seed(recipe.seed)
    set_trainable(model, stage.train)
    model.config.vocab_loss_weight = stage.loss.vocab
    model.config.blank_loss_weight = stage.loss.blank
    dataset = StageDataset(build_mix(stage, recipe.seed), stage, processor, model, recipe.seed)  # type: Any
    options = training_arguments(stage, OUT / "encoders", recipe.seed, bf16=False, quiet=True)
    options.save_strategy = SaveStrategy.NO
    trainer = StageTrainer(
        model=model,
        args=options,
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        rates=stage.train,
        losses=stage.loss,
        callbacks=[Deadline(seconds)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    return model.eval(), processor, trainer.state.global_step


def main() -> None:
    asked = arguments(__doc__, seconds=340, pages=6, threads=1)
    torch.set_num_threads(asked.threads)
    rows = []
    for name, how in {**ENCODERS, "line_reader (smol)": None}.items():
        if how is None:
            model, processor = load_model(build("smol"))
            steps, seconds = 0, 0
        else:
            model, processor, steps = trained(*how, asked.seconds)
            seconds = asked.seconds
        for layout in LAYOUTS:
            source = RenderSource(pages(layout), asked.pages, seed=UNSEEN)
            read = reading_accuracy(model, processor, source, asked.pages)
            rows.append(
                {"encoder": name, "cpu_s": seconds, "steps": steps, "layout": layout,
                 "text_cells": read.text_cells, "right": round(read.text, 3),
                 "blank_right": round(read.blank, 3)}
            )  # fmt: skip
            print(rows[-1], flush=True)
    path = RESULTS / f"encoders-cpu-{date.today()}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
