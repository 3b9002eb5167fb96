"""Putting a model together from parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)

from alignvlm import CONNECTORS
from alignvlm.compose.assemble import compose, load_tokenizer, vision_config
from alignvlm.errors import ConfigError, WeightsError

VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    "vision_use_head": False,
}  # fmt: skip
KEYS: dict[str, dict[str, Any]] = {
    "perceiver": {"num_latents": 3, "depth": 1, "num_heads": 2, "head_dim": 8},
    "ovis": {"visual_vocab_size": 50},
    "c_abstractor": {"out_rows": 1, "out_cols": 2, "hidden_size": 16, "depth": 1},
}


def language_model(tokenizer: Any, folder: Path, **over: Any) -> Path:
    keys = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "bos_token_id": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer),
        "tie_word_embeddings": True, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**{**keys, **over})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["tied", "untied"])
def any_lm(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path) -> Path:
    tied = request.param == "tied"
    return language_model(tokenizer, tmp_path / "lm", tie_word_embeddings=tied)


def test_the_language_model_is_kept(any_lm):
    original = AutoModelForCausalLM.from_pretrained(any_lm)
    model, processor = compose(VISION, any_lm)
    own = model.model.language_model.state_dict()
    for name, value in original.model.state_dict().items():
        assert torch.equal(own[name], value)
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    ids = processor.tokenizer("What is the total?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = original(ids).logits
        torch.testing.assert_close(model(ids).logits, expected)
    assert model.generation_config.eos_token_id == original.generation_config.eos_token_id


def test_w2_starts_as_the_head(any_lm):
    model, _ = compose(VISION, any_lm)
    align, head = model.model.connector, model.lm_head.weight
    assert torch.equal(align.w2.weight, head)
    assert align.w2.weight.data_ptr() != head.data_ptr()  # a copy: it trains by itself
    tied = model.config.tie_word_embeddings
    assert (head is model.get_input_embeddings().weight) == tied
    assert torch.equal(head, model.get_input_embeddings().weight) == tied
    random, _ = compose(VISION, any_lm, {"type": "align", "init": "random"})
    assert not torch.equal(random.model.connector.w2.weight, head)


def test_nothing_is_left_on_meta_and_saving_round_trips(any_lm, tmp_path):
    model, processor = compose(VISION, any_lm)
    assert not [n for n, t in model.state_dict().items() if t.is_meta]
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    assert again.config.to_dict()["connector_config"] == model.config.connector_config
    for (name, one), (_, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    assert AutoProcessor.from_pretrained(tmp_path / "m").tokenizer.padding_side == "left"


def test_padded_rows_stay_outside_p_vocab(tokenizer, tmp_path):
    """Tables are often longer than the tokenizer; the extra rows must get no probability."""
    folder = language_model(tokenizer, tmp_path / "lm", vocab_size=len(tokenizer) + 28)
    model, _ = compose(VISION, folder)
    align = model.model.connector
    assert model.config.connector_vocab_size == align.vocab_size == len(tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 28
    assert torch.equal(align.w2.weight, model.lm_head.weight[: len(tokenizer)])
    features = torch.randn(1, 2, 2, 32)
    assert align.vocab_distribution(features).shape[-1] == len(tokenizer)
    tokens = align(features, model.model.text_embedding())
    with torch.no_grad():
        model.get_input_embeddings().weight[len(tokenizer) :] = 1e6
    assert torch.equal(tokens, align(features, model.model.text_embedding()))


def test_kept_tokens(any_lm):
    ids = torch.tensor([300, 7, 44])
    config = {"type": "align", "kept_tokens": 3}
    model, _ = compose(VISION, any_lm, config, token_ids=ids)
    align = model.model.connector
    assert align.token_ids.tolist() == [7, 44, 300]
    assert torch.equal(align.w2.weight, model.lm_head.weight[[7, 44, 300]])
    random, _ = compose(VISION, any_lm, {**config, "init": "random"}, token_ids=ids)
    assert random.model.connector.token_ids.tolist() == [7, 44, 300]


def test_a_pretrained_encoder(tiny_lm_dir, tiny_vision_dir):
    original = AutoModel.from_pretrained(tiny_vision_dir)
    model, processor = compose(str(tiny_vision_dir), tiny_lm_dir)
    own = model.model.vision_model
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(
            own(pixels).last_hidden_state, original(pixels).last_hidden_state
        )
        features = model.model.encode_tiles(pixels)
        assert torch.equal(features.flatten(1, 2), original(pixels).last_hidden_state)
    assert processor.image_processor.size["height"] == 28


def test_the_vision_half_of_a_two_tower_checkpoint(tiny_lm_dir, tmp_path):
    vision = {k: v for k, v in VISION.items() if k != "model_type"}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 50,
            "num_attention_heads": 2, "max_position_embeddings": 8}  # fmt: skip
    both = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    both.save_pretrained(tmp_path / "siglip")
    assert isinstance(vision_config(tmp_path / "siglip"), SiglipVisionConfig)
    model, _ = compose(tmp_path / "siglip", tiny_lm_dir)
    for name, value in both.vision_model.state_dict().items():
        assert torch.equal(model.model.vision_model.state_dict()[name], value)
    assert model(
        pixel_values=torch.zeros(1, 3, 28, 28), vocab_targets=torch.zeros(1, 4, dtype=torch.long)
    ).loss.isfinite()


@pytest.mark.parametrize("name", CONNECTORS)
def test_every_connector_goes_with_a_language_model(tiny_lm_dir, make_image, name):
    model, processor = compose(VISION, tiny_lm_dir, {"type": name, **KEYS.get(name, {})})
    assert model.config.token_order == ("tile" if name == "perceiver" else "page")
    batch = processor(images=[make_image()], text="<empty_output> Who?", return_tensors="pt")
    assert model.eval()(**batch).logits.isfinite().all()


def test_the_new_parts_depend_on_the_seed_alone(tiny_lm_dir):
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(compose(VISION, tiny_lm_dir)[0])
    states = [m.state_dict() for m in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(
        states[0]["model.connector.w1.weight"], states[2]["model.connector.w1.weight"]
    )


def test_gamma_and_the_inner_norm_are_initialised(tiny_lm_dir):
    align = compose(VISION, tiny_lm_dir, {"type": "align", "gamma": 6})[0].model.connector
    assert bool((align.outer_norm_weight == 6).all())
    assert bool((align.outer_norm_bias == 0).all())
    assert bool((align.inner_norm.weight == 1).all())


def test_options_reach_config_and_processor(tiny_lm_dir):
    model, processor = compose(
        VISION,
        tiny_lm_dir,
        dtype=torch.bfloat16,
        tiling={"max_tiles": 3, "thumbnail": True},
        tile_height=14,
        tile_width=42,
        row_end=False,
        token_order="tile",
        image_token="<|endoftext|>",
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert processor.image_processor.max_tiles == 3
    assert processor.image_processor.thumbnail
    assert (model.config.tile_height, model.config.tile_width) == (14, 42)
    assert model.config.image_token_id == processor.image_token_id == 0
    assert model.config.tile_token_grid == (1, 3)
    assert model.config.token_order == processor.token_order == "tile"


# --- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"connector": "algin"}, ConfigError, r"did you mean 'align'"),
        ({"connector": {"type": "align", "gama": 1}}, ConfigError, r"did you mean 'gamma'"),
        ({"vision": {"model_type": "no_such"}}, ConfigError, "vision encoder"),
        ({"image_token": "<no such>"}, ConfigError, "not in the tokenizer's vocabulary"),
        ({"connector": "perceiver", "token_order": "page"}, ConfigError, "token_order='tile'"),
        ({"text": "/no/such/folder"}, WeightsError, "no folder"),
        ({"vision": "/no/such/folder"}, WeightsError, "no folder"),
    ],
)
def test_a_wrong_part_is_one_line(tiny_lm_dir, keys, error, message):
    parts = {"vision": VISION, "text": str(tiny_lm_dir), "connector": "align", **keys}
    with pytest.raises(error, match=message) as caught:
        compose(**parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "config", "config value", "tokenizer"])
def test_a_damaged_language_model_is_one_line(tiny_lm_dir, tmp_path, damage):
    folder = tmp_path / "lm"
    shutil.copytree(tiny_lm_dir, folder)
    if damage == "truncated":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "config":
        (folder / "config.json").write_text("{ not json")
    elif damage == "config value":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    else:
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError) as caught:
        compose(VISION, folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_encoder_is_one_line(tiny_lm_dir, tiny_vision_dir, tmp_path):
    folder = tmp_path / "vision"
    shutil.copytree(tiny_vision_dir, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(WeightsError, match="vision: not a usable model"):
        compose(folder, tiny_lm_dir)


def test_the_tokenizer_pads_left_even_after_saving(tiny_lm_dir, tmp_path):
    tokenizer = load_tokenizer(tiny_lm_dir)
    assert tokenizer.padding_side == "left"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer_plain(tmp_path).padding_side == "left"


def load_tokenizer_plain(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
