"""Dry runs: every shipped recipe, offline, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignvlm.errors import ConfigError
from alignvlm.train import load_recipe
from alignvlm.train.estimate import Estimate, estimate, meta_model

FOLDER = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.yaml"))
TEXT_PARAMETERS = {
    "tiny": 134_515_008,
    "smollm2-grounded": 134_515_008,
    "paper/llama-3.2-1b": 1_235_814_400,
    "paper/llama-3.2-3b": 3_212_749_824,
    "paper/llama-3.1-8b": 8_030_261_248,
    "lowres/llama-3.2-3b": 3_212_749_824,
    "general/llama-3.2-3b": 3_212_749_824,
}
SO400M = 412_959_600  # SigLIP-so400m at 384 px without its pooling head


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """An empty cache and no network."""
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def refuse(*args: object, **keys: object) -> None:
        raise AssertionError("a dry run resolves no weights")

    monkeypatch.setattr("alignvlm.train.estimate.resolve", refuse)
    monkeypatch.setattr("alignvlm.compose.assemble.resolve", refuse)


def test_all_shipped_recipes_are_counted():
    assert set(TEXT_PARAMETERS) <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_dry_runs_offline(no_weights, name):
    recipe = load_recipe(name)
    result = estimate(recipe)
    assert isinstance(result, Estimate)
    if name in TEXT_PARAMETERS:
        assert result.parameters["text"] == TEXT_PARAMETERS[name]
    if name.split("/")[0] in ("paper", "lowres", "general"):
        assert abs(result.parameters["vision"] - SO400M) < 1e5
    assert [stage.name for stage in result.stages] == [stage.name for stage in recipe.stages]
    for stage, spec in zip(result.stages, recipe.stages, strict=True):
        for part, rate in spec.train.items():
            if "." not in part:
                assert (stage.trainable[part] > 0) == (rate > 0)
        assert stage.peak_gib > 0
        assert stage.samples == spec.batch
    text = result.to_text()
    assert text.startswith(f"{name}: ") and all(s.name in text for s in recipe.stages)
    assert json.loads(json.dumps(result.to_dict()))["parameters"] == result.parameters


def test_the_papers_connector(no_weights):
    """W1 d_vision x D, two vectors of the inner norm, W2 V x D, γ and β."""
    for name, width in (("1b", 2048), ("3b", 3072)):
        counts = estimate(load_recipe(f"paper/llama-3.2-{name}")).parameters
        assert counts["connector"] == 1152 * width + 2 * width + 128_256 * width + 2 * 128_256


def test_tokens_of_the_paper(no_weights):
    """27 x 27 features a tile, nine tiles; 36 tiles and a thumbnail in the second regime."""
    assert estimate(load_recipe("paper/llama-3.2-1b")).visual_tokens == 9 * 729
    assert estimate(load_recipe("lowres/llama-3.2-3b")).visual_tokens == 37 * 729


def test_a_pruned_vocabulary_is_counted(no_weights):
    counts = [
        estimate(load_recipe("tiny", [f"model.connector.kept_tokens={kept}"])).parameters
        for kept in (3000, 2000)
    ]
    assert counts[0]["connector"] - counts[1]["connector"] == 1000 * (576 + 2)


def test_checkpointing_and_freezing_save_memory(no_weights):
    plain, spared, frozen = (
        estimate(load_recipe("smollm2-grounded", over)).stages[1].peak_gib
        for over in (
            [],
            ["stages.documents.gradient_checkpointing=true"],
            ["stages.documents.train={connector: 0.1}"],
        )
    )
    assert spared < plain
    assert frozen < plain


def test_packing_is_said_and_takes_what_the_largest_pages_take(no_weights):
    plain, packed = (
        estimate(load_recipe("tiny", [f"stages.instruction.packing={value}"]))
        for value in ("false", "true")
    )
    assert packed.stages[2].packing and packed.to_text().count("packs short samples") == 1
    assert packed.stages[2].peak_gib == plain.stages[2].peak_gib
    assert "packs" not in plain.to_text()


def test_a_stage_without_language_model_needs_less(no_weights):
    first, second, _ = estimate(load_recipe("smollm2-grounded", ["stages.0.batch_size=8"])).stages
    assert first.peak_gib < second.peak_gib
    assert first.trainable["text"] == 0


def test_the_model_has_no_storage(no_weights):
    model = meta_model(load_recipe("paper/llama-3.1-8b"))
    assert all(p.device == torch.device("meta") for p in model.parameters())
    assert model.lm_head.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.connector={type: perceiver}", "token_order"),
        ("model.connector.kept_tokens=1000000", "do not fit.*kept_tokens"),
        ("model.vision={model_type: no_such_thing}", "vision encoder"),
        ("model.text_config.model_type=no_such_thing", "do not fit"),
        ("model.text_config.hidden_size=wide", "do not fit"),
        ("stages.0.train={connector.w9: 1.0}", "'connector.w9' leads to no parameter"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(no_weights, override, message):
    overrides = [override]
    if "perceiver" in override:
        overrides += [f"stages.{n}.loss={{lm: 1}}" for n in range(3)]
        overrides += [f"stages.{n}.train={{connector: 1.0}}" for n in range(3)]
    with pytest.raises(ConfigError, match=message) as caught:
        estimate(load_recipe("tiny", overrides))
    assert "\n" not in str(caught.value)


def test_without_a_config_the_weights_are_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path))
    recipe = load_recipe("tiny", ["model.text_config=null", f"model.text={tmp_path}/gone"])
    with pytest.raises(ConfigError, match=r"give the recipe a model\.text_config"):
        estimate(recipe)
