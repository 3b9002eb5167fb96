"""Every connector learns: a tiny model overfits eight rendered pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignvlm import CONNECTORS
from alignvlm.data import encode
from alignvlm.data.collate import Collator
from alignvlm.data.records import Record, make_record
from alignvlm.data.sources import RenderSource
from alignvlm.data.synthetic.render import RenderSpec
from alignvlm.eval.reading_accuracy import reading_accuracy

PAGES = 8
ANSWERS = ["Maria", "Lopez", "total", "report", "dog", "fox", "table", "chart"]
CONNECTOR = {"c_abstractor": {"out_rows": 2, "out_cols": 4}}
VISION = {
    "model_type": "convnext", "image_size": [28, 56], "patch_size": 7, "num_stages": 2,
    "hidden_sizes": [24, 48], "depths": [1, 1], "layer_scale_init_value": 0.1,
}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 96, "initializer_range": 0.2}


def records() -> list[Record]:
    """Eight pages; each answer can only be known by looking at its page."""
    spec = RenderSpec(
        layout="text", width=112, height=28, font_px=(20, 20), fonts=("DejaVuSans",), margin=2
    )
    pages = RenderSource(spec, PAGES)
    return [
        make_record(f"{i}", pages[i].images, [("Who?", answer)], source="t", words=None)
        .model_copy(update={"words": pages[i].words})
        for i, answer in enumerate(ANSWERS)
    ]  # fmt: skip


def build(make_config: Any, make_processor: Any, name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig

    from alignvlm import AlignVLMForConditionalGeneration

    vision = dict(VISION)
    vision = AutoConfig.for_model(vision.pop("model_type"), **vision)
    config = make_config(name, vision=vision, text=TEXT, connector_keys=CONNECTOR.get(name))
    torch.manual_seed(0)
    model = AlignVLMForConditionalGeneration(config)
    return model, make_processor(config, max_tiles=2)


def fit(model: Any, batch: dict[str, Any], steps: int, good: float, **keys: Any) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch, **keys).loss
        losses.append(loss.item())
        if losses[-1] < good:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    return losses


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_connector_overfits_eight_pages(make_config, make_processor, name):
    model, processor = build(make_config, make_processor, name)
    samples = [encode.encode(record, processor) for record in records()]
    batch = Collator(processor.tokenizer.pad_token_id)(samples)
    losses = fit(model, batch, 250, 0.05, use_cache=False, skip_logits=True)
    # a model that does not see its pages cannot do better than ln 8 on an answer's first token,
    # which is about 0.7 nats a token here
    assert losses[-1] < 0.1, (losses[0], losses[-1])
    assert losses[0] > 4
    # with other pages in the same prompts the answers are wrong again: it does look
    tiles = len(batch["pixel_values"]) // PAGES
    swapped = batch["pixel_values"].unflatten(0, (PAGES, tiles)).roll(1, 0).flatten(0, 1)
    with torch.no_grad():
        blind = model(**{**batch, "pixel_values": swapped}).loss.item()
    assert blind > 0.7


def test_align_overfits_what_stands_under_each_cell(make_config, make_processor):
    model, processor = build(make_config, make_processor, "align")
    pages = records()
    samples = []
    for record in pages:
        sample = encode.encode_images(record, processor)
        sample["vocab_targets"] = encode.vocab_targets(
            record, sample["image_grids"], model.config, processor.tokenizer, model.model.connector
        )
        samples.append(sample)
    batch = Collator(0)(samples)
    batch.pop("image_grids")
    before = reading_accuracy(model, processor, pages, PAGES)
    losses = fit(model, batch, 250, 0.05)
    after = reading_accuracy(model, processor, pages, PAGES)
    assert losses[-1] < 0.1 * losses[0]
    assert after.text > 0.9 > 0.3 > before.text
    assert after.blank > 0.9
    assert after.loss < before.loss
