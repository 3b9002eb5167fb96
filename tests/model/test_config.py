"""The model's config: counts, checks and round trips."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from transformers import AutoConfig, CLIPVisionConfig, ConvNextConfig, LlamaConfig, ResNetConfig

from alignvlm import AlignVLMConfig
from alignvlm.connectors.configs import CONNECTOR_TYPES, connector_config
from alignvlm.errors import ConfigError
from alignvlm.model.config import vision_stride


@pytest.mark.parametrize("name", CONNECTOR_TYPES)
def test_round_trip(make_config, name, tmp_path):
    config = make_config(name, tile_width=42, row_end=False, vocab_loss_weight=0.5)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, AlignVLMConfig)
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert again.connector == config.connector
    assert type(again.text_config) is LlamaConfig


@pytest.mark.parametrize(
    ("name", "per_tile"),
    [
        ("align", 6),
        ("mlp", 6),
        ("perceiver", 3),
        ("ovis", 6),
        ("h_reducer", 4),
        ("c_abstractor", 2),
    ],
)
def test_tokens_per_tile(make_config, name, per_tile):
    config = make_config(name, tile_width=42)
    assert config.feature_grid == (2, 3)
    assert config.tokens_per_tile == per_tile


def test_defaults_come_from_the_parts(make_config):
    config = make_config()
    assert (config.tile_height, config.tile_width) == (28, 28)
    assert config.connector_vocab_size == config.text_config.vocab_size
    assert config.tie_word_embeddings is True
    assert make_config(text={"tie_word_embeddings": False}).tie_word_embeddings is False
    assert config.vision_hidden_size == 32


def test_an_empty_config_can_be_built():
    config = AlignVLMConfig()
    assert config.vision_config.model_type == "siglip_vision_model"
    assert config.text_config.model_type == "llama"


def test_page_order_needs_a_token_grid(make_config):
    with pytest.raises(ConfigError, match="set token_order='tile'"):
        make_config("perceiver", token_order="page")
    assert make_config(token_order="tile").row_end is False


@pytest.mark.wrong_shapes
def test_there_is_no_other_order(make_config):
    with pytest.raises(ConfigError, match="'pages' is not"):
        make_config(token_order="pages")


def test_unknown_connectors_and_keys_are_named():
    with pytest.raises(ConfigError, match="did you mean 'align'"):
        connector_config("allign")
    with pytest.raises(ConfigError, match="unknown key"):
        connector_config({"type": "align", "gama": 2})
    with pytest.raises(ConfigError, match="gamma"):
        connector_config({"type": "align", "gamma": -1})
    with pytest.raises(ConfigError, match="unknown connector type None"):
        connector_config({"gamma": 1})


def test_connector_configs_are_frozen():
    config = connector_config("align")
    with pytest.raises(ValidationError):
        config.gamma = 2.0
    assert connector_config(config) is config


def test_vision_stride():
    assert vision_stride(CLIPVisionConfig(patch_size=16)) == (16, 16)
    assert vision_stride(ConvNextConfig()) == (32, 32)
    with pytest.raises(ConfigError, match="no patch_size"):
        vision_stride(ResNetConfig())


def test_a_convolutional_encoder_knows_its_width_and_grid(make_config):
    vision = ConvNextConfig(
        patch_size=7, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], image_size=28
    )
    config = make_config(vision=vision)
    assert config.feature_grid == (2, 2)
    assert config.vision_hidden_size == 32
