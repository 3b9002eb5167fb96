"""A composed model teaches its reader: gradients of its losses at the recogniser's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignvlm.compose.assemble import compose
from alignvlm.data.ground import page_targets, tile_targets
from alignvlm.data.synthetic.fonts import plain_font
from alignvlm.data.synthetic.render import Canvas
from alignvlm.reader.cells import join_tiles
from alignvlm.tiling import Grid

TEXT, NOISE = "Bill 108 for coal", 110


@pytest.fixture(scope="module")
def model(tiny_lm_dir: Path) -> Any:
    """The shipped reader with a tiny language model."""
    return compose("reader", tiny_lm_dir)


@pytest.fixture(scope="module")
def batch(model: Any) -> dict[str, Tensor]:
    """A line under so much noise that the reader is unsure, with its question and answer."""
    _, processor = model
    canvas = Canvas(
        300, 50, font=plain_font(), px=26, margin=6, line_spacing=1.2, background=250, ink=10
    )
    canvas.put(10, 8, TEXT)
    page = canvas.page("text", ())
    noise = np.random.default_rng(0).normal(0, NOISE, (50, 300, 1))
    pixels = np.clip(np.asarray(page.image.convert("RGB")) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    inputs = processor(
        text=[processor.image_token + " What is it?"], images=[image], return_tensors="pt"
    )
    rows, cols, _ = inputs["image_grids"][0].tolist()
    truth = page_targets(
        page.words, image.size, Grid(rows, cols), model[0].config, processor.tokenizer
    )
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    inputs = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    return {
        **inputs,
        "pixel_values": inputs["pixel_values"].double(),
        "vocab_targets": tile_targets(truth.targets, Grid(rows, cols)),
        "labels": labels,
    }


@pytest.fixture(scope="module")
def double(model: Any, batch: dict[str, Tensor]) -> Any:
    """The model in double precision; lines are found once, they have no gradient."""
    reader = model[0].model.vision_model
    rows, cols, _ = batch["image_grids"][0].tolist()
    lines = reader.find_lines(join_tiles(batch["pixel_values"].float(), rows, cols))
    reader.find_lines = lambda page: lines
    return model[0].double().eval()


def loss_of(model: Any, batch: dict[str, Tensor], kind: str) -> Tensor:
    """The loss of the answer, or that on P_vocab where text stands."""
    if kind == "answer":
        inputs = {key: value for key, value in batch.items() if key != "vocab_targets"}
        return model(**inputs).loss
    seen = (batch[key] for key in ("pixel_values", "vocab_targets", "image_grids"))
    return model.model.vocab_loss(*seen).text


@pytest.mark.parametrize("kind", ["answer", "P_vocab"])
def test_losses_reach_the_recogniser_and_agree_with_differences(double, batch, kind):
    reader = double.model.vision_model
    with torch.no_grad():
        (page,) = double.model.see(batch["pixel_values"], batch["image_grids"])[1]
    assert ((page.q > 0.01).sum(1) > 1).any(), page.text  # in doubt
    double.zero_grad()
    loss_of(double, batch, kind).backward()
    gradients = {name: p.grad for name, p in reader.recogniser.named_parameters()}
    reached = [name for name, g in gradients.items() if g is not None and bool((g != 0).any())]
    assert len(reached) > 0.8 * len(gradients)
    assert all(p.grad is None for p in reader.detector.parameters())
    weight = dict(reader.recogniser.named_parameters())[reached[0]]
    place = int(weight.grad.abs().argmax())
    expected = float(weight.grad.flatten()[place])
    step, values = 1e-4, []
    with torch.no_grad():
        for sign in (1, -1):
            weight.view(-1)[place] += sign * step
            values.append(float(loss_of(double, batch, kind)))
            weight.view(-1)[place] -= sign * step
    assert expected != 0
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-2)


def test_more_candidates_are_kept_where_less_likely_ones_count(model, batch):
    reader = model[0].model.vision_model
    rows, cols, _ = batch["image_grids"][0].tolist()
    pixels = join_tiles(batch["pixel_values"], rows, cols)
    pixels = pixels.to(next(reader.parameters()).dtype)
    usual, counts = reader.least, []
    for least in (0.5, usual, 1e-6):
        reader.least = least
        with torch.no_grad():
            counts.append(int((reader.read_tokens(pixels).ids >= 0).sum()))
    reader.least = usual
    assert counts[0] < counts[1] < counts[2]
