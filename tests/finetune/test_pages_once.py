"""Pages that neither encoder nor connector changes are encoded once, with the same results."""

from __future__ import annotations

import pytest
import torch

from alignvlm.finetune.pages_once import pages_once
from alignvlm.inference.generate import generate
from alignvlm.inference.prompt import build_prompts, chat


@pytest.fixture
def model(make_model):
    made = make_model("align").eval()
    made.config.blank_threshold = 0.003
    return made


@pytest.fixture
def processor(make_config, make_processor):
    return make_processor(make_config("align"))


def batch_of(processor, image):
    batch = processor.apply_chat_template(
        [chat("Total?", [image])], tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    return dict(batch)


def test_the_same_logits_and_answers_from_one_encoding(model, processor, images):
    one, other = (batch_of(processor, image) for image in images[:2])
    with torch.no_grad():
        expected = [model(**one).logits, model(**other).logits]
    seen = []
    model.model.vision_model.register_forward_pre_hook(lambda module, args: seen.append(1))
    prompt = build_prompts(model, processor, [chat("Total?", [images[0]])])
    said = generate(model, processor.tokenizer, prompt, [5])[0].text
    assert len(seen) == 1
    with pages_once(model), torch.no_grad():
        for _ in range(2):
            for batch, logits in zip((one, other), expected, strict=True):
                torch.testing.assert_close(model(**batch).logits, logits)
        prompt = build_prompts(model, processor, [chat("Total?", [images[0]])])
        assert generate(model, processor.tokenizer, prompt, [5])[0].text == said
    assert len(seen) == 3
    with torch.no_grad():
        model(**one)
    assert len(seen) == 4  # outside nothing is remembered


def test_what_does_not_fit_is_encoded_each_time(model, processor, images):
    batch = batch_of(processor, images[0])
    seen = []
    model.model.vision_model.register_forward_pre_hook(lambda module, args: seen.append(1))
    with pages_once(model, most=8), torch.no_grad():
        model(**batch)
        model(**batch)
    assert len(seen) == 2


def test_targets_are_scored_anew(model, processor, images):
    batch = batch_of(processor, images[0])
    shape = (len(batch["pixel_values"]), model.config.tokens_per_tile)
    targets = torch.zeros(shape, dtype=torch.long)
    with pages_once(model), torch.no_grad():
        model(**batch)
        assert model(**batch, vocab_targets=targets).vocab_loss is not None
