"""The vision encoder all cells start from: it has learnt letters, and nothing about a connector."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from alignvlm.data.sources import draw
from alignvlm.data.synthetic.render import render_page

from . import data
from .settings import STARTING_POINT_TEST, Settings

RATE, WARMUP, BLANK_WEIGHT = 2e-3, 30, 0.25


def vision_keys(settings: Settings) -> dict[str, Any]:
    """Config of the encoder, as a recipe's ``model.vision`` has it."""
    return {
        "model_type": "convnext",
        "image_size": [data.HEIGHT, data.WIDTH],
        "patch_size": 4,  # cells of 8 px: a stem of stride 4, then one halving
        "num_stages": 2,
        "hidden_sizes": list(settings.widths),
        "depths": list(settings.depths),
        "layer_scale_init_value": 0.1,
    }


def prepare(folder: Path, settings: Settings, report: Any = print) -> Path:
    """Train the encoder to name the character in each cell, unless it is there.

    A linear head that is thrown away reads the characters: no connector, no language model and no
    token of its vocabulary takes part, so no connector is favoured.
    """
    if settings.is_there(folder, "vision"):
        return folder
    torch.manual_seed(0)
    start = time.process_time()
    keys = vision_keys(settings)
    model = AutoModel.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys))
    head = nn.Linear(settings.widths[-1], len(data.LETTERS) + 1)
    accuracy = _train(model, head, settings, report)
    centre(model, STARTING_POINT_TEST)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    facts = {
        "made_with": settings.made_with("vision"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "characters_read": accuracy,
        "cpu_s": round(time.process_time() - start, 1),
    }
    (partial / "study.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    partial.rename(folder)
    report(f"vision encoder: {accuracy:.3f} of characters, {facts['cpu_s']} CPU s")
    return folder


@torch.no_grad()
def centre(model: Any, pages: int) -> None:
    """Make the features of cells with a character zero on average; exact: a bias takes it up.

    All features of an encoder have much in common. A connector that starts from such features first
    learns what to say in every cell, and ALIGN then says it for sure, everywhere, for good.
    """
    pixels, wanted = _batch([draw(13, -1, i) for i in range(pages)])
    features = model(pixels).last_hidden_state.permute(0, 2, 3, 1)
    last = model.encoder.stages[-1].layers[-1]
    last.pwconv2.bias -= features[wanted != data.BLANK].mean(0) / last.layer_scale_parameter


def _batch(seeds: list[int]) -> tuple[Tensor, Tensor]:
    pixels, wanted = [], []
    for number, seed in enumerate(seeds):
        spec = (data.FORMS, data.FORMS, data.TEXT)[number % 3]
        page = render_page(spec.model_copy(update={"random_text": 0.3}), seed)
        pixels.append(torch.from_numpy(np.asarray(page.image, dtype=np.float32) / 127.5 - 1))
        wanted.append(data.characters(page))
    return torch.stack(pixels).permute(0, 3, 1, 2), torch.stack(wanted)


def _logits(model: Any, head: nn.Linear, pixels: Tensor) -> Tensor:
    return head(model(pixels).last_hidden_state.permute(0, 2, 3, 1))


def _train(model: Any, head: nn.Linear, settings: Settings, report: Any) -> float:
    model.train()
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.98), weight_decay=0.01)
    weight = torch.ones(len(data.LETTERS) + 1)
    weight[data.BLANK] = BLANK_WEIGHT
    steps, size = settings.vision_steps, settings.vision_batch
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP, 1.1 - step / steps)
        pixels, wanted = _batch([draw(13, step * size + i) for i in range(size)])
        logits = _logits(model, head, pixels).flatten(0, 2)
        loss = F.cross_entropy(logits, wanted.flatten(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            report(f"vision encoder: step {step + 1}, {loss.item():.3f} nats a cell")
    model.eval()
    with torch.no_grad():
        pixels, wanted = _batch([draw(data.TEST_SEED, 5, i) for i in range(STARTING_POINT_TEST)])
        best = _logits(model, head, pixels).argmax(-1)
    text = wanted != data.BLANK
    return (best[text] == wanted[text]).float().mean().item()
