"""A stage: what trains at which rate, its samples, and its loss."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from PIL import Image

from alignvlm.data import encode
from alignvlm.data.collate import Collator
from alignvlm.data.records import make_record
from alignvlm.data.sources import RenderSource
from alignvlm.data.synthetic.render import RenderSpec
from alignvlm.errors import ConfigError, DataError
from alignvlm.model.losses import IGNORE
from alignvlm.train.recipe import StageSpec
from alignvlm.train.stages import (
    Losses,
    StageDataset,
    StageTrainer,
    build_mix,
    learning_rate,
    part_of,
    set_trainable,
    training_arguments,
)

PAGE = {"layout": "text", "width": 112, "height": 56, "font_px": [14, 14], "margin": 2}
RENDER = {"type": "render", "page": PAGE, "size": 20}


def spec(**over: Any) -> StageSpec:
    keys = {
        "name": "one",
        "steps": 2,
        "train": {"vision": 1e-3, "connector": 1e-3, "text": 1e-3},
        "loss": {"lm": 1, "vocab": 1},
        "sources": [RENDER],
        "log_steps": 1,
        "warmup_ratio": 0,
        "scheduler": "constant",
    }
    return StageSpec.model_validate({**keys, **over})


# --- what trains -------------------------------------------------------------------------------


def test_every_parameter_has_a_path(make_model):
    paths = {part_of(name) for name, _ in make_model("align").named_parameters()}
    assert {path.split(".")[0] for path in paths} == {"vision", "connector", "text"}
    assert {"connector.w2.weight", "text.embed_tokens.weight"} <= paths
    untied = make_model("align", text={"tie_word_embeddings": False})
    assert "text.lm_head.weight" in {part_of(name) for name, _ in untied.named_parameters()}


def test_the_longest_path_wins():
    rates = {"connector": 1.0, "connector.w2": 0.0, "text.layers": 2.0, "text.layers.1": 3.0}
    core = "model.language_model"
    assert learning_rate("model.connector.w1.weight", rates) == 1
    assert learning_rate("model.connector.w2.weight", rates) == 0
    assert learning_rate(f"{core}.layers.0.mlp.up_proj.weight", rates) == 2
    assert learning_rate(f"{core}.layers.1.mlp.up_proj.weight", rates) == 3
    assert learning_rate(f"{core}.layers.11.mlp.up_proj.weight", rates) == 2  # not "layers.1"
    assert learning_rate(f"{core}.embed_tokens.weight", rates) == 0
    assert learning_rate("model.vision_model.encoder.x", rates) == 0


def test_what_has_no_rate_is_frozen(make_model):
    model = make_model("align")
    counts = set_trainable(model, {"connector": 1e-3, "connector.w2": 0})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        "model.connector.w1.weight",
        "model.connector.inner_norm.weight",
        "model.connector.inner_norm.bias",
        "model.connector.outer_norm_weight",
        "model.connector.outer_norm_bias",
    }
    assert counts == {"vision": 0, "connector": 32 * 32 + 2 * 32 + 2 * 400, "text": 0}
    # and set again for the next stage
    counts = set_trainable(model, {"text": 1e-3})
    assert counts["connector"] == 0
    assert counts["text"] == sum(
        p.numel() for n, p in model.named_parameters() if part_of(n).startswith("text.")
    )


def test_a_path_that_leads_nowhere_is_an_error(make_model):
    with pytest.raises(ConfigError, match=r"train: 'connector\.w3' leads to no parameter"):
        set_trainable(make_model("align"), {"connector": 1, "connector.w3": 1})


# --- samples -----------------------------------------------------------------------------------


def dataset(model: Any, make_processor: Any, stage: StageSpec, source: Any = None) -> StageDataset:
    processor = make_processor(model.config, max_tiles=8)
    return StageDataset(source or build_mix(stage, 0), stage, processor, model, 0)


def test_a_stage_with_language_model_has_everything(make_model, make_processor):
    sample = dataset(make_model("align"), make_processor, spec())[0]
    assert set(sample) == {
        "input_ids", "attention_mask", "labels", "pixel_values", "image_grids", "vocab_targets",
    }  # fmt: skip
    tiles = len(sample["pixel_values"])
    assert sample["vocab_targets"].shape == (tiles, 4)


def test_a_stage_without_one_has_no_text(make_model, make_processor):
    stage = spec(loss={"lm": 0, "vocab": 1, "blank_cells": 1}, train={"vision": 1})
    sample = dataset(make_model("align"), make_processor, stage)[0]
    assert set(sample) == {"pixel_values", "image_grids", "vocab_targets"}
    blank = make_model("align").config.blank_token_id
    assert int((sample["vocab_targets"] == blank).sum()) <= 1


def test_without_the_loss_there_are_no_targets(make_model, make_processor):
    sample = dataset(make_model("mlp"), make_processor, spec(loss={"lm": 1}))[0]
    assert "vocab_targets" not in sample


def test_samples_depend_on_their_number_alone(make_model, make_processor):
    stage = spec(loss={"lm": 1, "vocab": 1, "blank_cells": 2}, steps=8)
    first = dataset(make_model("align"), make_processor, stage)
    second = dataset(make_model("align"), make_processor, stage)
    for index in (5, 0, 7):
        a, b = first[index], second[index]
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_long_samples_are_dropped_for_the_next(make_model, make_processor, images):
    records = [
        make_record("long", [], [("Who?", "word " * 80)], source="t"),
        make_record("short", [], [("Who?", "Maria")], source="t"),
    ]
    data = dataset(make_model("align"), make_processor, spec(max_length=60), records)
    assert torch.equal(data[0]["input_ids"], data[1]["input_ids"])
    assert data.dropped == 1
    short = dataset(make_model("align"), make_processor, spec(max_length=16), records)
    with pytest.raises(DataError, match="longer than max_length=16"):
        short[0]


def test_with_blank_dropping_only_what_remains_counts(make_model, make_processor):
    """A page of eight tiles: 32 placeholders, few of them with a token."""
    model = make_model("align", blank_threshold=0.5)
    page = RenderSource(RenderSpec.model_validate(PAGE), 1)[0]
    record = make_record("page", page.images, [("Who?", "Maria")], source="t")
    words = record.model_copy(update={"words": page.words})
    full = dataset(model, make_processor, spec(), [words])[0]
    ids, image = full["input_ids"], model.config.image_token_id
    text = int((ids != image).sum())
    cells = int((full["vocab_targets"] != model.config.blank_token_id).sum())
    assert 0 < cells < len(ids) - text == 32
    for given, length in ((words, text + cells), (record, text)):
        stage = spec(max_length=length)
        sample = dataset(model, make_processor, stage, [given])[0]
        assert torch.equal(sample["input_ids"], ids)
        with pytest.raises(encode.TooLong, match=f"page: {length} tokens, more than max_length="):
            dataset(model, make_processor, spec(max_length=length - 1), [given])._encode(given, 0)
    whole = make_model("align")  # which gives the language model every cell
    with pytest.raises(encode.TooLong, match=f"page: {len(ids)} tokens"):
        dataset(whole, make_processor, spec(max_length=text + cells), [words])._encode(words, 0)


def test_epochs_show_every_sample_once_each():
    sources = [RENDER, {**RENDER, "size": 5, "seed": 1}]
    mix = build_mix(spec(steps=None, epochs=2, sources=sources), 0)
    assert len(mix) == 50
    ids = [mix.locate(i) for i in range(50)]
    assert all(ids.count(one) == 2 for one in set(ids))


def test_steps_set_the_length_and_limit_caps():
    assert len(build_mix(spec(steps=3, batch_size=2, gradient_accumulation=5), 0)) == 30
    capped = build_mix(spec(steps=30, sources=[{**RENDER, "limit": 2}]), 0)
    assert {capped.locate(i)[1] for i in range(30)} == {0, 1}


# --- the trainer -------------------------------------------------------------------------------


class Recorded(StageTrainer):
    """Keeps the gradients of each step, as the optimiser is given them."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        self.seen: list[dict[str, torch.Tensor]] = []

        def keep(*_: Any) -> None:
            named = self.model.named_parameters()
            self.seen.append({n: p.grad.clone() for n, p in named if p.grad is not None})

        optimizer.register_step_pre_hook(keep)
        return optimizer


def run(
    model: Any, samples: list[Any], stage: StageSpec, folder: Any, packing: bool = False
) -> Recorded:
    set_trainable(model, stage.train)
    model.config.vocab_loss_weight = stage.loss.vocab
    model.config.blank_loss_weight = stage.loss.blank
    trainer = Recorded(
        model=model,
        args=training_arguments(stage, folder, 0, bf16=False, quiet=True),
        train_dataset=samples,
        data_collator=Collator(2),
        rates=stage.train,
        losses=stage.loss,
        packing=packing,
        callbacks=[Losses()],
    )
    trainer.train()
    return trainer


@pytest.fixture
def samples(make_model, make_processor, images):
    """Four pages with unequal numbers of labels and cells, one prompt without any image."""

    def make(loss: dict[str, Any]) -> list[Any]:
        model = make_model("align")
        stage = spec(steps=6, loss=loss)
        pages = dataset(model, make_processor, stage)
        plain = dataset(
            model,
            make_processor,
            stage,
            [make_record("t", [], [("Who?", "Maria Lopez signed it.")], source="t")] * 2,
        )
        blank = model.config.blank_token_id
        assert len({int((pages[i]["vocab_targets"] != blank).sum()) for i in range(5)}) > 1
        return [pages[0], pages[1], pages[2], plain[0], pages[3], pages[4]]

    return make


@pytest.mark.parametrize("loss", [{"lm": 1, "vocab": 1}, {"lm": 0.5, "vocab": 2, "blank": 0.5}])
@pytest.mark.parametrize("micro", [1, 2])
def test_accumulated_gradients_equal_one_large_batch(make_model, samples, loss, micro, tmp_path):
    data = samples(loss)
    keys: dict[str, Any] = {"steps": 1, "loss": loss, "max_grad_norm": 1e9}
    large, small = (
        run(
            make_model("align").train(),
            data,
            spec(**keys, batch_size=size, gradient_accumulation=6 // size),
            tmp_path / str(size),
        )
        for size in (6, micro)
    )
    assert large.seen[0].keys() == small.seen[0].keys()
    for name, gradient in large.seen[0].items():
        torch.testing.assert_close(small.seen[0][name], gradient, rtol=2e-4, atol=2e-6)
    for key in ("loss", "lm_loss", "vocab_loss", "vocab_text_loss", "vocab_blank_loss"):
        values = [t.state.log_history[0][key] for t in (large, small)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    first = large.state.log_history[0]
    total = loss["lm"] * first["lm_loss"] + loss["vocab"] * first["vocab_loss"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("blank_threshold", [None, 0.003])
@pytest.mark.parametrize("size", [6, 3])
def test_packed_steps_equal_padded_ones(make_model, samples, blank_threshold, size, tmp_path):
    """Also where a step's gradients are accumulated, whose tokens are counted over all of it."""
    loss = {"lm": 0.5, "vocab": 2, "blank": 0.5}
    data = samples(loss)
    packed, padded = (
        run(
            make_model("align", blank_threshold=blank_threshold).train(),
            data,
            spec(
                steps=2, loss=loss, max_grad_norm=1e9, batch_size=size,
                gradient_accumulation=6 // size,
            ),
            tmp_path / str(packing),
            packing=packing,
        )
        for packing in (True, False)
    )  # fmt: skip
    for name, gradient in padded.seen[0].items():
        torch.testing.assert_close(packed.seen[0][name], gradient, rtol=1e-3, atol=1e-5)
    for key in ("loss", "lm_loss", "vocab_loss", "vocab_text_loss", "vocab_blank_loss"):
        for step in range(2):
            values = [t.state.log_history[step][key] for t in (packed, padded)]
            assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_packing_needs_several_samples_and_a_language_model():
    assert spec(packing=True, batch_size=2).packing
    with pytest.raises(ValueError, match=r"batch_size above 1.*lower gradient_accumulation"):
        spec(packing=True)
    with pytest.raises(ValueError, match=r"packing needs loss\.lm above 0"):
        keys = {"train": {"vision": 1e-3}, "loss": {"lm": 0, "vocab": 1}}
        spec(packing=True, batch_size=2, **keys)


def test_images_are_decoded_once_a_sample(
    make_model, make_processor, images, tmp_path, monkeypatch
):
    paths = []
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    words = [[{"text": "total", "box": (1, 1, 8, 8)}] for _ in images]
    record = make_record("r", paths, [("Who?", "Maria")], source="t")
    record = record.model_copy(update={"words": words})
    model = make_model("align", blank_threshold=0.5)
    pages = dataset(model, make_processor, spec(max_length=16), [record])
    opened: list[Any] = []
    open_file = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: opened.append(path) or open_file(path))
    kept = encode.kept_length
    monkeypatch.setattr(encode, "kept_length", lambda *args: 0 * kept(*args))
    assert "vocab_targets" in pages[0]
    assert sorted(map(str, opened)) == sorted(paths)


def test_the_loss_is_the_models_own(make_model, samples, tmp_path):
    data = samples({"lm": 1, "vocab": 1})
    trainer = run(make_model("align").train(), data, spec(steps=1, batch_size=6), tmp_path)
    model = make_model("align")
    model.config.blank_loss_weight = 0.25
    with torch.no_grad():
        expected = model(**Collator(2)(data)).loss.item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_accumulation_without_a_language_model(make_model, make_processor, tmp_path):
    loss = {"lm": 0, "vocab": 1, "blank": 0.25, "blank_cells": 3}
    keys: dict[str, Any] = {
        "steps": 1, "loss": loss, "train": {"vision": 1e-3, "connector": 1e-3}, "max_grad_norm": 1e9
    }  # fmt: skip
    pages = dataset(make_model("align"), make_processor, spec(**{**keys, "steps": 4}))
    data = [pages[index] for index in range(4)]
    large, small = (
        run(
            make_model("align").train(),
            data,
            spec(**keys, batch_size=size, gradient_accumulation=4 // size),
            tmp_path / str(size),
        )
        for size in (4, 1)
    )
    for name, gradient in large.seen[0].items():
        torch.testing.assert_close(small.seen[0][name], gradient, rtol=2e-4, atol=2e-6)
    logs = [t.state.log_history[0] for t in (large, small)]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-4)
    assert "lm_loss" not in logs[0]
    model = make_model("align")
    with torch.no_grad():
        batch = Collator(2)(data)
        batch.pop("image_grids")
        assert logs[0]["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-4)


def test_no_language_model_runs_in_a_stage_without_its_loss(make_model, make_processor, tmp_path):
    stage = spec(loss={"lm": 0, "vocab": 1}, train={"vision": 1e-3, "connector": 1e-3})
    model = make_model("align").train()
    pages = dataset(model, make_processor, stage)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the language model ran")

    model.model.language_model.forward = refuse
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, [pages[0], pages[1]], stage, tmp_path)
    moved = {
        part_of(n).split(".")[0] for n, p in model.named_parameters() if (p != before[n]).any()
    }
    assert moved == {"vision", "connector"}


def test_an_encoder_of_whole_pages_is_told_the_grids(make_model, make_processor, tmp_path):
    """Also without the language model, or it would read each tile as a page of its own."""
    stage = spec(steps=1, loss={"lm": 0, "vocab": 1}, train={"connector": 1e-3}, batch_size=2)
    model = make_model("align").train()
    pages = dataset(model, make_processor, stage)
    encode, seen = model.model.encode_tiles, []

    def watch(pixels: Any, image_grids: Any = None) -> Any:
        seen.append(image_grids)
        return encode(pixels, image_grids)

    model.model.encode_tiles = watch
    run(model, [pages[0], pages[1]], stage, tmp_path)
    first, *telemetry = seen
    assert first.tolist() == [[2, 4, 0], [2, 4, 0]]
    assert telemetry == [None]


def test_each_rate_has_its_group(make_model, make_processor, tmp_path):
    rates = {"vision": 3e-4, "connector": 1e-3, "connector.w2": 0, "text.embed_tokens": 2e-5}
    stage = spec(train=rates, weight_decay=0.1)
    model = make_model("align").train()
    pages = dataset(model, make_processor, stage)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = run(model, [pages[0], pages[1]], stage, tmp_path)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["initial_lr"] == learning_rate(name, rates) > 0
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert seen == {n for n, _ in model.named_parameters() if learning_rate(n, rates)}
    for name, parameter in model.named_parameters():
        assert name in seen or torch.equal(parameter, before[name])


def test_the_optimizer_is_the_one_that_the_recipe_names(
    make_model, make_processor, tmp_path, monkeypatch
):
    model = make_model("align").train()
    stage = spec(optimizer="adamw_torch_fused")
    pages = dataset(model, make_processor, stage)
    trainer = run(model, [pages[0], pages[1]], stage, tmp_path)
    assert trainer.optimizer.defaults["fused"]
    eight = spec(optimizer="adamw_bnb_8bit")
    trainer.args = training_arguments(eight, tmp_path, 0, bf16=False, quiet=True)
    trainer.optimizer = None
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"optimizer: .*bitsandbytes"):
        trainer.create_optimizer()


def test_checkpointed_activations_change_nothing(make_model, samples, tmp_path):
    data = samples({"lm": 1, "vocab": 1})[:2]
    calls = {False: 0, True: 0}

    def counted(on: bool) -> Any:
        model = make_model("align").train()

        def count(*_: Any) -> None:
            calls[on] += 1

        model.model.language_model.layers[0].self_attn.register_forward_pre_hook(count)
        return model

    plain, spared = (
        run(
            counted(on),
            data,
            spec(steps=1, batch_size=2, gradient_checkpointing=on, max_grad_norm=1e9),
            tmp_path / str(on),
        )
        for on in (False, True)
    )
    assert calls == {False: 1, True: 2}  # the layer ran again on the way back
    for name, gradient in plain.seen[0].items():
        torch.testing.assert_close(spared.seen[0][name], gradient, rtol=1e-4, atol=1e-6)


def test_every_checkpoint_is_logged(make_model, make_processor, tmp_path):
    stage = spec(steps=5, log_steps=4, save_steps=3)
    model = make_model("align").train()
    pages = dataset(model, make_processor, stage)
    trainer = run(model, [pages[i] for i in range(5)], stage, tmp_path)
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [1, 3, 4, 5]


def test_labels_outside_the_answer_are_ignored(samples):
    data = samples({"lm": 1, "vocab": 1})
    assert all(bool((s["labels"] == IGNORE).any()) for s in data)
