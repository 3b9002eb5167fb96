"""The model: encoding, assembling, merging, losses, saving."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    ConvNextConfig,
)

from alignvlm import CONNECTORS, AlignVLMForConditionalGeneration, AlignVLMModel
from alignvlm.errors import AlignVLMError, ConfigError
from alignvlm.model.losses import IGNORE, combine
from alignvlm.tiling import Grid, page_order

IMG = "<empty_output>"
every_connector = pytest.mark.parametrize("name", CONNECTORS)


@pytest.fixture
def make_batch(make_processor, images):
    """Two prompts, three images, the second prompt with two of them."""

    def make(config: Any, **keys: Any) -> Any:
        texts = [f"{IMG} what?", f"{IMG} and {IMG} which total?"]
        processor = make_processor(config, **keys)
        return processor(images=images, text=texts, padding=True, return_tensors="pt")

    return make


def targets_for(model: Any, batch: Any, seed: int = 0) -> torch.Tensor:
    """Random targets: a third blank, a third ignored."""
    config = model.config
    shape = (len(batch["pixel_values"]), config.tokens_per_tile)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(5, config.connector_vocab_size, shape, generator=generator)
    kind = torch.randint(0, 3, shape, generator=generator)
    targets[kind == 1] = config.blank_token_id
    targets[kind == 2] = IGNORE
    return targets


def assert_same(model: Any, again: Any, batch: Any) -> None:
    """The same weights to the bit; logits up to the rounding of another memory layout."""
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, again(**batch).logits, atol=1e-5)


# --- saving ------------------------------------------------------------------------------------


@every_connector
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(make_model, make_batch, tmp_path, name, tied):
    model = make_model(name, text={"tie_word_embeddings": tied})
    batch = make_batch(model.config)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert list(tmp_path.glob("*.safetensors"))
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is AlignVLMForConditionalGeneration
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
    assert_same(model, again, batch)


def test_sharded_round_trip(make_model, make_batch, tmp_path):
    model = make_model(text={"tie_word_embeddings": False})
    batch = make_batch(model.config)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert_same(model, again, batch)


def test_the_base_model_loads_alone(make_model, make_batch, tiny_model_dir):
    base = AutoModel.from_pretrained(tiny_model_dir)
    assert type(base) is AlignVLMModel
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_dir)
    batch = make_batch(model.config)
    with torch.no_grad():
        hidden = base(**batch).last_hidden_state
        assert torch.allclose(hidden, model.model(**batch).last_hidden_state, atol=1e-5)


def test_tied_weights_are_saved_once(make_model, tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="60KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    assert "model.language_model.embed_tokens.weight" in index["weight_map"]


def test_a_pruned_vocabulary_survives_saving(make_model, make_batch, tmp_path):
    model = make_model(connector_keys={"kept_tokens": 20})
    model.model.connector.token_ids.copy_(torch.arange(7, 47, 2))
    batch = make_batch(model.config)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.model.connector.token_ids.tolist() == list(range(7, 47, 2))
    assert_same(model, again, batch)


# --- checks ------------------------------------------------------------------------------------


def test_mismatches_name_the_sample(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    broken = {**batch, "input_ids": batch["input_ids"].clone()}
    row = broken["input_ids"][1]
    row[(row == model.config.image_token_id).nonzero()[0]] = 9
    with pytest.raises(AlignVLMError, match="sample 1: its prompt has 11 image placeholders"):
        model(**broken)
    with pytest.raises(AlignVLMError, match="ask for 3 tiles, pixel_values has 5"):
        model(**{**batch, "image_grids": batch["image_grids"][1:]})
    with pytest.raises(AlignVLMError, match="needs image_grids"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    with pytest.raises(AlignVLMError, match="1 images have no placeholders"):
        model(
            **{**batch, "input_ids": batch["input_ids"][:1].new_full((1, 14), 9)}
            | {
                "pixel_values": batch["pixel_values"][:2],
                "image_grids": batch["image_grids"][:1],
                "attention_mask": None,
            }
        )


def test_exactly_one_of_ids_and_embeddings(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    for keys in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(AlignVLMError, match="exactly one of"):
            model(**keys)
    with pytest.raises(AlignVLMError, match="pixel_values needs input_ids"):
        model(inputs_embeds=embeds, pixel_values=batch["pixel_values"])


def test_merge_then_embeddings_equals_pixels(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    images = {key: batch[key] for key in ("input_ids", "pixel_values", "image_grids")}
    mask = batch["attention_mask"]
    with torch.no_grad():
        embeds, visual, loss, *_ = model.model.merge(**images)
        assert loss is None
        assert len(visual) == 20
        by_embeds = model(inputs_embeds=embeds, attention_mask=mask).logits
        assert torch.equal(by_embeds, model(**batch).logits)
        options = {"max_new_tokens": 5, "do_sample": False}
        new = model.generate(inputs_embeds=embeds, attention_mask=mask, **options)
        full = model.generate(**batch, **options)
    assert full[:, batch["input_ids"].shape[1] :].tolist() == new.tolist()


def test_text_positions_keep_their_embeddings(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    images = {key: batch[key] for key in ("input_ids", "pixel_values", "image_grids")}
    with torch.no_grad():
        embeds, visual, *_ = model.model.merge(**images)
        plain = model.get_input_embeddings()(batch["input_ids"])
        features = model.get_image_features(batch["pixel_values"], batch["image_grids"])
    at_image = batch["input_ids"] == model.config.image_token_id
    assert torch.equal(embeds[~at_image], plain[~at_image])
    assert torch.equal(embeds[at_image], visual)
    assert torch.equal(visual, torch.cat(features.pooler_output))
    assert model(**batch).image_hidden_states.shape == visual.shape


# --- vision and order --------------------------------------------------------------------------


def test_get_image_features_and_token_order(make_model, make_batch):
    page = make_model(token_order="page", tile_width=42)
    tile = make_model(token_order="tile", tile_width=42)
    tile.load_state_dict(page.state_dict())
    batch = make_batch(page.config, thumbnail=True)
    grids = batch["image_grids"]
    with torch.no_grad():
        in_pages = page.get_image_features(batch["pixel_values"], grids)
        in_tiles = tile.get_image_features(batch["pixel_values"], grids)
    assert in_pages.last_hidden_state.shape == (len(batch["pixel_values"]), 2, 3, 32)
    assert any(grid[2] for grid in grids.tolist())
    for (rows, cols, thumb), a, b in zip(
        grids.tolist(), in_pages.pooler_output, in_tiles.pooler_output, strict=True
    ):
        order = page_order(Grid(rows, cols), 2, 3)
        assert len(a) == len(order) + 6 * thumb
        assert torch.equal(a[: len(order)], b[order])
        assert torch.equal(a[len(order) :], b[len(order) :])


def test_tiles_are_encoded_alone(make_model, make_batch):
    model = make_model()
    pixels = make_batch(model.config)["pixel_values"]
    with torch.no_grad():
        together = model.model.encode_tiles(pixels)
        alone = torch.cat([model.model.encode_tiles(tile[None]) for tile in pixels])
    assert torch.allclose(together, alone, atol=1e-5)


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )


def convnext_config() -> ConvNextConfig:
    return ConvNextConfig(
        patch_size=7, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], image_size=28
    )


@pytest.mark.parametrize("vision", [clip_config, convnext_config, lambda: None])
@pytest.mark.parametrize("size", [(28, 28), (28, 42), (42, 28)])
def test_vision_encoders_and_tile_sizes(make_model, make_batch, tmp_path, vision, size):
    height, width = size
    model = make_model(vision=vision(), tile_height=height, tile_width=width)
    batch = make_batch(model.config)
    with torch.no_grad():
        features = model.model.encode_tiles(batch["pixel_values"])
        assert features.shape == (len(batch["pixel_values"]), height // 14, width // 14, 32)
    model.save_pretrained(tmp_path)
    assert_same(model, AutoModelForImageTextToText.from_pretrained(tmp_path), batch)


def test_the_grid_follows_the_picture(make_model):
    """Row 0 of the features is the top of the tile, column 0 its left."""
    model = make_model(vision=convnext_config(), tile_width=42)
    pixels = torch.zeros(1, 3, 28, 42)
    with torch.no_grad():
        before = model.model.encode_tiles(pixels)
        pixels[:, :, 24:, 38:] = 1  # bottom right
        change = (model.model.encode_tiles(pixels) - before).abs().sum(-1)[0]
    assert change.flatten().argmax() == 5


def test_clips_class_token_is_dropped(make_model, make_batch):
    model = make_model(vision=clip_config())
    pixels = make_batch(model.config)["pixel_values"]
    with torch.no_grad():
        everything = model.model.vision_model(pixels).last_hidden_state
        features = model.model.encode_tiles(pixels)
    assert everything.shape[1] == 5
    assert torch.equal(features.flatten(1, 2), everything[:, 1:])


@pytest.mark.parametrize("vision", [clip_config, lambda: None])
def test_an_earlier_layer(make_model, make_batch, vision):
    model = make_model(vision=vision(), vision_feature_layer=-2)
    batch = make_batch(model.config)
    with torch.no_grad():
        states = model.model.vision_model(batch["pixel_values"], output_hidden_states=True)
        features = model.model.encode_tiles(batch["pixel_values"])
    assert torch.equal(features.flatten(1, 2), states.hidden_states[-2][:, -4:])


def test_an_encoder_with_another_stride_is_a_clear_error(make_model):
    model = make_model(vision=convnext_config())
    model.config.vision_config.patch_size = 14
    with pytest.raises(ConfigError, match="expected a 1x1 grid for tiles of 28x28 px"):
        model.model.encode_tiles(torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize("vision", [lambda: None, convnext_config])
def test_other_tile_sizes_than_the_configs_are_refused(make_model, vision):
    model = make_model(vision=vision())
    for height, width in [(56, 56), (14, 56), (14, 14)]:
        with pytest.raises(AlignVLMError, match=r"expected \[tiles, 3, 28, 28\]"):
            model.model.encode_tiles(torch.zeros(1, 3, height, width))


# --- attention, checkpointing, freezing --------------------------------------------------------


def test_sdpa_equals_eager(make_model, make_batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    batch = make_batch(model.config)
    logits = []
    for attention in ("sdpa", "eager"):
        loaded = AutoModelForImageTextToText.from_pretrained(
            tmp_path, attn_implementation=attention
        )
        parts = (loaded, loaded.model.language_model, loaded.model.vision_model)
        assert {part.config._attn_implementation for part in parts} == {attention}
        with torch.no_grad():
            logits.append(loaded(**batch).logits[batch["attention_mask"].bool()])
    assert torch.allclose(*logits, atol=1e-4)


def gradients(model: Any, batch: Any, **keys: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, labels=batch["input_ids"], **keys).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def test_gradient_checkpointing_changes_nothing(make_model, make_batch):
    model = make_model().train()
    batch = make_batch(model.config)
    loss, plain = gradients(model, batch)
    # transformers 5.23 renames it
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert sum(getattr(m, "gradient_checkpointing", False) for m in model.modules()) >= 4
    again, checkpointed = gradients(model, batch)
    assert torch.allclose(loss, again)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


@every_connector
def test_every_part_learns(make_model, make_batch, name):
    model = make_model(name).train()
    _, grads = gradients(model, make_batch(model.config))
    for part in ("vision_model", "connector", "language_model"):
        found = [g for n, g in grads.items() if f".{part}." in n and g.abs().sum() > 0]
        assert found, part
    missing = {n for n, p in model.named_parameters() if p.requires_grad and n not in grads}
    assert not {n for n in missing if ".connector." in n}


@pytest.mark.parametrize("frozen", ["vision_model", "language_model", "connector"])
def test_frozen_parts_stay(make_model, make_batch, frozen):
    model = make_model(text={"tie_word_embeddings": False}).train()
    getattr(model.model, frozen).requires_grad_(False)
    _, grads = gradients(model, make_batch(model.config))
    assert not [n for n in grads if n.startswith(f"model.{frozen}.")]
    for part in {"vision_model", "language_model", "connector"} - {frozen}:
        assert [n for n in grads if n.startswith(f"model.{part}.")]


def test_a_rank_without_images_takes_part_in_their_gradients(make_model, monkeypatch, tokenizer):
    model = make_model().train()
    ids = tokenizer("no image here", return_tensors="pt")["input_ids"]
    plain, grads = gradients(model, {"input_ids": ids})
    assert not [name for name in grads if "vision_model" in name]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    loss, grads = gradients(model, {"input_ids": ids})
    assert torch.equal(loss, plain)
    for part in ("vision_model", "connector"):
        found = [g for n, g in grads.items() if f".{part}." in n]
        assert found
        assert not any(g.any() for g in found)


# --- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [None, 240])
def test_vocab_loss_equals_the_dense_distribution(make_model, make_batch, kept):
    model = make_model(
        connector_keys={"kept_tokens": kept}, vocab_loss_weight=0.7, blank_loss_weight=0.3
    )
    config = model.config
    batch = make_batch(config)
    targets = targets_for(model, batch)
    if kept:
        targets[targets >= kept] = IGNORE
        assert config.blank_token_id < kept
    pixels = batch["pixel_values"]
    with torch.no_grad():
        features = model.model.encode_tiles(pixels)
        p = model.model.connector.vocab_distribution(features).flatten(0, 2)
        flat = targets.flatten()
        nll = -p.double().log()[torch.arange(len(flat)), flat.clamp_min(0)]
        blank = flat == config.blank_token_id
        text = (flat >= 0) & ~blank
        expected = nll[text].mean() + 0.3 * nll[blank].mean()
        plain = model(**batch, labels=batch["input_ids"])
        # encoder and connector alone
        alone = model(pixel_values=pixels, vocab_targets=targets)
        assert alone.logits is None
        assert alone.lm_loss is None
        # beside the language model
        both = model(**batch, labels=batch["input_ids"], vocab_targets=targets)
        no_labels = model(**batch, vocab_targets=targets)
    for output in (alone, both, no_labels):
        assert output.vocab_loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert output.vocab_text_loss.item() == pytest.approx(nll[text].mean().item(), rel=1e-5)
        assert output.vocab_blank_loss.item() == pytest.approx(nll[blank].mean().item(), rel=1e-5)
    assert alone.loss.item() == pytest.approx(0.7 * expected.item(), rel=1e-5)
    assert no_labels.loss.item() == pytest.approx(0.7 * expected.item(), rel=1e-5)
    assert torch.allclose(both.logits, plain.logits, atol=1e-5)
    assert both.lm_loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert both.loss.item() == pytest.approx(plain.loss.item() + 0.7 * expected.item(), rel=1e-5)


def test_vocab_loss_alone_leaves_the_language_model_out(make_model, make_batch):
    model = make_model().train()
    batch = make_batch(model.config)
    targets = targets_for(model, batch)
    model(pixel_values=batch["pixel_values"], vocab_targets=targets).loss.backward()
    touched = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {"vision_model", "connector"}
    alone = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    images = {key: batch[key] for key in ("input_ids", "pixel_values", "image_grids")}
    model(**images, vocab_targets=targets).loss.backward()
    for name, parameter in model.named_parameters():
        if name in alone:
            assert torch.allclose(alone[name], parameter.grad, atol=1e-5), name


def test_vocab_loss_without_scored_cells_is_zero(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    targets = torch.full_like(targets_for(model, batch), IGNORE)
    for keys in ({"pixel_values": batch["pixel_values"]}, batch):
        loss = model(**keys, vocab_targets=targets).loss
        assert loss.item() == 0
        loss.backward()


def test_vocab_loss_needs_align(make_model, make_batch):
    model = make_model("mlp")
    batch = make_batch(model.config)
    with pytest.raises(ConfigError, match="needs the 'align' connector, this model has 'mlp'"):
        model(**batch, vocab_targets=targets_for(model, batch))


def test_combine_by_hand():
    nll = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    targets = torch.tensor([7, 3, 3, IGNORE, 9])
    loss = combine(nll, targets, 3, 0.5)
    assert (loss.text.item(), loss.blank.item()) == (8.5, 3.0)
    assert loss.loss.item() == 10.0
    assert combine(nll, targets, None, 0.5).loss.item() == pytest.approx(23 / 4)


@pytest.mark.parametrize("items", [None, torch.tensor(40)])
def test_skip_logits_changes_neither_loss_nor_gradients(make_model, make_batch, items):
    model = make_model().train()
    batch = make_batch(model.config)
    labels = batch["input_ids"].clone()
    labels[labels == model.config.image_token_id] = IGNORE
    labels[batch["attention_mask"] == 0] = IGNORE
    keys = {**batch, "labels": labels, "num_items_in_batch": items}
    normal = model(**keys)
    normal.loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sparse = model(**keys, skip_logits=True)
    sparse.loss.backward()
    assert sparse.logits is None
    assert normal.logits is not None
    assert sparse.loss.item() == pytest.approx(normal.loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in grads:
            assert torch.allclose(grads[name], parameter.grad, atol=1e-5), name


def test_skip_logits_without_labels_gives_logits(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    assert model(**batch, skip_logits=True).logits is not None
    labels = torch.full_like(batch["input_ids"], IGNORE)
    assert model(**batch, labels=labels, skip_logits=True).loss.item() == 0


def test_logits_to_keep_and_tuples(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    with torch.no_grad():
        full = model(**batch).logits
        assert torch.allclose(model(**batch, logits_to_keep=1).logits, full[:, -1:], atol=1e-5)
        assert torch.equal(model(**batch, return_dict=False)[0], full)


@every_connector
def test_half_precision(make_model, make_batch, name):
    model = make_model(name).to(torch.bfloat16)
    batch = make_batch(model.config)
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
