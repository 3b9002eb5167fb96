"""Generation, resizing the vocabulary, and language models of other families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

from alignvlm import CONNECTORS
from alignvlm.errors import AlignVLMError

IMG = "<empty_output>"
GREEDY = {"max_new_tokens": 6, "do_sample": False}
every_connector = pytest.mark.parametrize("name", CONNECTORS)


@pytest.fixture
def prompts(images) -> tuple[list[str], list[list[Any]]]:
    """No image, one image of two tiles, two images: one document of two pages."""
    texts = ["Say something long here", f"{IMG} Who?", f"{IMG} or {IMG} What is the total?"]
    return texts, [[], images[:1], images[1:]]


def generate(model: Any, batch: Any, **keys: Any) -> torch.Tensor:
    """Only the new tokens."""
    return model.generate(**batch, **GREEDY, **keys)[:, batch["input_ids"].shape[1] :]


def batch_of(processor: Any, texts: list[str], images: list[list[Any]]) -> Any:
    given = images if any(images) else None
    return processor(images=given, text=texts, padding=True, return_tensors="pt")


# --- generation --------------------------------------------------------------------------------


@every_connector
def test_the_cache_changes_nothing(make_model, make_processor, prompts, name):
    model = make_model(name)
    batch = batch_of(make_processor(model.config), *prompts)
    cached = generate(model, batch)
    assert torch.equal(cached, generate(model, batch, use_cache=False))
    # and both equal repeated forward passes over everything
    ids, mask = batch["input_ids"], batch["attention_mask"]
    images = {key: batch[key] for key in ("pixel_values", "image_grids")}
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions, **images).logits
    assert torch.equal(cached[:, 0], logits[:, -1].argmax(-1))


@every_connector
def test_a_left_padded_batch_equals_one_by_one(make_model, make_processor, prompts, name):
    model = make_model(name)
    processor = make_processor(model.config, thumbnail=True)
    texts, images = prompts
    together = generate(model, batch_of(processor, texts, images), eos_token_id=-1)
    for row in range(3):
        single = batch_of(processor, texts[row : row + 1], images[row : row + 1])
        assert torch.equal(generate(model, single, eos_token_id=-1)[0], together[row])


def test_the_image_matters(make_model, make_processor, make_image):
    model = make_model()
    processor = make_processor(model.config)
    logits = []
    for seed in (5, 6):
        batch = batch_of(processor, [f"{IMG} Who?"], [[make_image(56, 28, seed)]])
        with torch.no_grad():
            logits.append(model(**batch).logits[0, -1])
    assert not torch.allclose(*logits, atol=1e-3)


def test_beams_and_several_sequences(make_model, make_processor, prompts):
    model = make_model()
    processor = make_processor(model.config, thumbnail=True)
    texts, images = prompts
    batch = batch_of(processor, texts, images)
    beams = generate(model, batch, num_beams=3, num_return_sequences=2, eos_token_id=-1)
    assert beams.shape == (6, 6)
    for row in range(3):
        single = batch_of(processor, texts[row : row + 1], images[row : row + 1])
        alone = generate(model, single, num_beams=3, num_return_sequences=2, eos_token_id=-1)
        assert torch.equal(alone, beams[2 * row : 2 * row + 2])
    # with a temperature of almost zero every sample is the greedy one
    greedy = generate(model, batch, eos_token_id=-1)
    keys = {"do_sample": True, "temperature": 1e-4, "num_return_sequences": 2}
    samples = model.generate(**batch, **{**GREEDY, **keys}, eos_token_id=-1)
    samples = samples[:, batch["input_ids"].shape[1] :]
    assert torch.equal(samples, greedy.repeat_interleave(2, 0))


def test_text_only_generation_equals_the_bare_language_model(
    make_model, tokenizer, tiny_lm_dir, make_processor
):
    bare = AutoModelForCausalLM.from_pretrained(tiny_lm_dir).eval()
    model = make_model()
    model.model.language_model.load_state_dict(bare.model.state_dict())
    texts = ["The total is", "Who signed the letter? It was"]
    batch = make_processor(model.config)(text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, bare(**batch).logits, atol=1e-5)
    assert torch.equal(generate(model, batch), generate(bare, batch))


def test_pipeline(tiny_model_dir, images):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_dir)
    processor = AutoProcessor.from_pretrained(tiny_model_dir)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    parts = [{"type": "image", "image": images[0]}, {"type": "text", "text": "Who?"}]
    messages = [{"role": "user", "content": parts}]
    answer = pipe(text=messages, generate_kwargs=GREEDY, return_full_text=False)
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    expected = processor.decode(generate(model, batch)[0], skip_special_tokens=True)
    assert answer[0]["generated_text"] == expected


def test_pipeline_by_path(tiny_model_dir, images):
    pipe = pipeline("image-text-to-text", model=str(tiny_model_dir))
    answers = pipe(images=images[:1], text=f"{IMG} Who?", generate_kwargs=GREEDY)
    assert isinstance(answers[0]["generated_text"], str)


# --- resizing the vocabulary -------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_growing_the_vocabulary_leaves_p_vocab_alone(
    make_model, make_processor, prompts, tmp_path, tied
):
    model = make_model(text={"tie_word_embeddings": tied})
    batch = batch_of(make_processor(model.config), *prompts)
    images = (batch["pixel_values"], batch["image_grids"])
    rows = model.config.text_config.vocab_size

    def observe(model):
        with torch.no_grad():
            found = model.get_image_features(*images)
            connector = model.model.connector
            return (
                connector.vocab_distribution(found.last_hidden_state),
                torch.cat(found.pooler_output),
                model(**batch).logits[..., :rows],
            )

    before = observe(model)
    model.resize_token_embeddings(rows + 8)
    assert model.get_input_embeddings().weight.shape[0] == rows + 8
    assert model(**batch).logits.shape[-1] == rows + 8
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.connector_vocab_size == rows
    assert again.config.text_config.vocab_size == rows + 8
    for grown in (model, again):
        for old, new in zip(before, observe(grown), strict=True):
            assert torch.allclose(old, new, atol=1e-6)
        assert (grown.lm_head.weight is grown.get_input_embeddings().weight) is tied
    # back to the rows it was built for, but no further
    again.resize_token_embeddings(rows)
    with pytest.raises(AlignVLMError, match=f"cannot shrink .* P_vocab covers {rows} rows"):
        again.resize_token_embeddings(rows - 1)


def test_p_vocab_can_leave_out_padding_rows(make_model, make_processor, prompts):
    """A table padded to a round size: the connector covers the tokenizer's ids only."""
    model = make_model(text={"vocab_size": 448}, connector_vocab_size=400)
    batch = batch_of(make_processor(model.config), *prompts)
    with torch.no_grad():
        before = model.get_image_features(batch["pixel_values"], batch["image_grids"])
        model.get_input_embeddings().weight[400:] = 1e4
        after = model.get_image_features(batch["pixel_values"], batch["image_grids"])
    assert torch.equal(torch.cat(before.pooler_output), torch.cat(after.pooler_output))


# --- other language models ---------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 20.0},
    "gemma3_text": {"sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.3},
}


def text_config(family: str, tokenizer: Any) -> Any:
    keys = {} if family == "gpt2" else SMALL
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(family, **{**keys, **ids, **LANGUAGE_MODELS[family]})


def shaken(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_language_model_families(make_model, make_processor, prompts, tokenizer, tmp_path, family):
    text = text_config(family, tokenizer)
    model = make_model(text=text)
    processor = make_processor(model.config)
    # the bare language model with the same weights gives the same logits and text
    bare = shaken(AutoModelForCausalLM.from_config(text))
    model.model.language_model.load_state_dict(bare.base_model.state_dict())
    model.lm_head.load_state_dict(bare.get_output_embeddings().state_dict())
    model.tie_weights()
    tied = bare.get_output_embeddings().weight is bare.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    words = processor(text=["The total is", "Who signed it?"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = model(**words).logits, bare(**words).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(generate(model, words), generate(bare, words))
    # with images: forward, generation, save and load
    batch = batch_of(processor, *prompts)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
    with torch.no_grad():
        logits = model(**batch).logits
        assert logits.isfinite().all()
        assert torch.allclose(again(**batch).logits, logits, atol=1e-5)
    assert torch.equal(generate(again, batch), generate(model, batch, use_cache=False))


def test_the_saved_tokenizer_pads_on_the_left(tiny_lm_dir):
    assert AutoTokenizer.from_pretrained(tiny_lm_dir).padding_side == "left"


@pytest.mark.parametrize("family", ["gemma3_text", "granite", "qwen2"])
def test_soft_text_has_the_scale_of_text(
    make_model, make_processor, prompts, tokenizer, monkeypatch, family
):
    """Gemma multiplies inside its embedding: a one-hot P_vocab must give the token's embedding."""
    model = make_model(text=text_config(family, tokenizer))
    batch = batch_of(make_processor(model.config), *prompts)
    token, per_tile = 200, model.config.tokens_per_tile
    monkeypatch.setattr(
        model.model.connector,
        "forward",
        lambda features, table: table[token].expand(len(features), per_tile, -1),
    )
    as_text = batch["input_ids"].masked_fill(
        batch["input_ids"] == model.config.image_token_id, token
    )
    with torch.no_grad():
        seen = model(**batch).logits
        read = model(input_ids=as_text, attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(seen, read, atol=1e-5)
