"""ALIGN into the hosts: only the connector changes, and everything a host can do still works."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.transplant.convert_hosts import (
    IMAGE,
    KINDS,
    D,
    V,
    connector_of,
    image_tokens,
    inputs_for,
    make_host,
)
from transformers import AutoModelForImageTextToText

from alignvlm.connectors.configs import AlignConfig
from alignvlm.errors import AlignVLMError, ConfigError
from alignvlm.transplant.convert import HOSTS, convert, describe, tokens_per_tile
from alignvlm.transplant.host_config import text_rows


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_only_the_connector_changes(kind: str, tied: bool) -> None:
    host = make_host(kind, tied)
    before = {name: value.clone() for name, value in host.state_dict().items()}
    new = convert(host, AlignConfig(gamma=4))
    assert isinstance(new, type(host))
    after = new.state_dict()
    kept = [name for name in after if name in before]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    gone = {name for name in before if name not in after}
    slots = ("multi_modal_projector", "connector", "head_linear", "head_norm", "visual_embeddings")
    assert gone and all(any(slot in name for slot in slots) for name in gone)
    added = [name for name in after if name not in before and "visual_indicators" not in name]
    assert added and all(f"{new.model.connector_name}.align." in name for name in added)
    if kind == "ovis2":
        indicators = before["model.visual_embeddings_table.weight"][-5:]
        assert torch.equal(after["model.visual_indicators.weight"], indicators)
    # the host is as it was
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert (new.lm_head.weight is new.get_input_embeddings().weight) == tied


def test_w2_starts_as_the_head_and_owns_no_table(kind: str, tied: bool) -> None:
    new = convert(make_host(kind, tied))
    align = connector_of(new).align
    assert torch.equal(align.w2.weight, new.lm_head.weight[:IMAGE])
    assert align.w2.weight.data_ptr() != new.lm_head.weight.data_ptr()
    table = new.get_input_embeddings().weight
    assert all(parameter is not table for parameter in connector_of(new).parameters())
    owners = [n for n, p in new.named_parameters(remove_duplicate=False) if p is table]
    assert len(owners) == (2 if tied else 1)


def test_visual_tokens_lie_in_the_hull_and_count_as_before(kind: str) -> None:
    host = make_host(kind)
    batch = inputs_for(host)
    new = convert(host, AlignConfig(gamma=4))
    with torch.no_grad():
        was, now = image_tokens(host, batch), image_tokens(new, batch)
        assert was.shape == now.shape == (2, tokens_per_tile(host.config), D)
        features = new.model.connector_features(pixel_values=batch["pixel_values"])
        p = connector_of(new).vocab_distribution(features)
        assert p.shape[-1] == IMAGE and (p >= 0).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        table = new.get_input_embeddings().weight[:IMAGE]
        torch.testing.assert_close(now, p @ table, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(now[0], now[1])  # it looks at the image
        best, ids = new.top_tokens(3, pixel_values=batch["pixel_values"])
    assert torch.equal(ids, p.topk(3).indices) and torch.allclose(best, p.topk(3).values)


def test_pixel_shuffle_is_the_hosts() -> None:
    host = make_host("smolvlm")
    connector = connector_of(convert(host))
    features = torch.randn(2, 16, 12)
    assert torch.equal(connector.arrange(features), host.model.connector.pixel_shuffle(features, 2))
    with pytest.raises(AlignVLMError, match="15 features"):
        connector.arrange(features[:, :15])


def test_text_alone_is_unchanged(kind: str) -> None:
    host = make_host(kind)
    new = convert(host)
    ids = torch.tensor([[3, 7, 9, 11]])
    with torch.no_grad():
        assert torch.equal(new(input_ids=ids).logits, host(input_ids=ids).logits)


def test_gradient_reaches_connector_and_table(kind: str, tied: bool) -> None:
    new = convert(make_host(kind, tied))
    image_tokens(new, inputs_for(new)).square().sum().backward()
    align, table = connector_of(new).align, new.get_input_embeddings().weight
    for parameter in (align.w1.weight, align.w2.weight, align.outer_norm_weight, table):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert table.grad[IMAGE:].abs().sum() == 0  # placeholder rows are outside P_vocab


def test_save_and_load(kind: str, tied: bool, tmp_path) -> None:
    new = convert(make_host(kind, tied), AlignConfig(gamma=4))
    batch = inputs_for(new)
    new.save_pretrained(tmp_path)
    again, found = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert type(again) is type(new) and again.config.connector.gamma == 4
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, new(**batch).logits)


def test_generate(kind: str) -> None:
    new = convert(make_host(kind), AlignConfig(gamma=4))
    batch = inputs_for(new)
    out = new.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert out.shape == (2, batch["input_ids"].shape[1] + 3)
    with torch.no_grad():
        first = new(**batch).logits[:, -1]
    first[:, 2] = -torch.inf  # min_new_tokens forbids the end
    assert torch.equal(out[:, -3], first.argmax(-1))


def test_resized_table(kind: str, tied: bool) -> None:
    new = convert(make_host(kind, tied))
    batch = inputs_for(new)
    with torch.no_grad():
        plain = new(**batch).logits
        new.resize_token_embeddings(V + 4, mean_resizing=False)
        grown = new(**batch).logits
    assert grown.shape[-1] == V + 4
    torch.testing.assert_close(grown[..., :V], plain)
    assert (new.lm_head.weight is new.get_input_embeddings().weight) == tied


def test_a_table_smaller_than_p_vocab_is_an_error() -> None:
    new = convert(make_host("smolvlm"), vocab_size=V)
    batch = inputs_for(new)
    new.resize_token_embeddings(V - 4, mean_resizing=False)
    with pytest.raises(AlignVLMError, match="56 rows, P_vocab covers 60"):
        new(**batch)


def test_deepcopy_mixes_its_own_table(kind: str) -> None:
    new = convert(make_host(kind))
    twin, batch = copy.deepcopy(new), inputs_for(new)
    with torch.no_grad():
        plain = image_tokens(new, batch)
        twin.get_input_embeddings().weight.mul_(2)
        torch.testing.assert_close(image_tokens(new, batch), plain)
        torch.testing.assert_close(image_tokens(twin, batch), 2 * plain)


def test_half_precision(kind: str) -> None:
    host = make_host(kind)
    batch = inputs_for(host)
    with torch.no_grad():
        full = convert(host)(**batch).logits
        new = convert(make_host(kind).to(torch.bfloat16))
        assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
        half = new(**{**batch, "pixel_values": batch["pixel_values"].bfloat16()}).logits
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert full.shape == half.shape


def test_overfits(kind: str) -> None:
    new = convert(make_host(kind), AlignConfig(gamma=4)).train()
    batch = inputs_for(new)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    connector = connector_of(new)
    start = {name: p.detach().clone() for name, p in connector.named_parameters()}
    optimizer = torch.optim.AdamW(new.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss = new(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(p, start[name]) for name, p in connector.named_parameters())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft asks
def test_lora_trains_and_keeps_the_connector(kind: str, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    new = convert(make_host(kind), AlignConfig(gamma=4))
    name, batch = new.model.connector_name, inputs_for(new)
    with torch.no_grad():
        plain = new(**batch).logits
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=[name], r=2)
    wrapped = peft.get_peft_model(new, lora)
    output = wrapped(**batch, labels=batch["input_ids"])
    torch.testing.assert_close(output.logits, plain)
    output.loss.backward()
    trained = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("modules_to_save" in n and "align.w1" in n for n in trained)
    assert any("modules_to_save" in n and "align.w2" in n for n in trained)
    _, ids = wrapped.top_tokens(2, pixel_values=batch["pixel_values"])
    assert ids.shape == (2, tokens_per_tile(new.config), 2)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        moved = wrapped(**batch).logits
    wrapped.save_pretrained(tmp_path)
    fresh = convert(make_host(kind), AlignConfig(gamma=4))
    again = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, moved)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, moved, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(moved, plain)


def test_the_connector_alone_takes_a_table() -> None:
    new = convert(make_host("llava-clip"))
    connector, table = connector_of(new), new.get_input_embeddings().weight
    batch = inputs_for(new)
    features = new.model.connector_features(pixel_values=batch["pixel_values"])
    torch.testing.assert_close(connector(features, table), image_tokens(new, batch))
    with pytest.raises(AlignVLMError, match="text_embedding"):
        connector(features)


def test_frozen_parts_and_settings_stay() -> None:
    host = make_host("idefics3").train()
    host.model.vision_model.requires_grad_(False)
    host.set_attn_implementation("eager")
    host.generation_config.max_length = 77
    new = convert(host)
    assert new.training and not any(p.requires_grad for p in new.model.vision_model.parameters())
    assert new.config._attn_implementation == "eager" == host.config._attn_implementation
    assert new.config.text_config is new.model.text_model.config
    assert new.generation_config.max_length == 77
    assert host.config.model_type == "idefics3"


def test_which_rows_are_text() -> None:
    config = make_host("ovis2").config
    assert text_rows(config) == IMAGE
    config.image_token_id = 3  # reserved inside the text vocabulary
    assert text_rows(config) == V
    assert connector_of(convert(make_host("ovis2"), vocab_size=20)).align.vocab_size == 20


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: convert(make_host("ovis2"), "mlp"), "only 'align'"),
        (lambda: convert(make_host("ovis2"), {"type": "align", "gama": 4}), "did you mean 'gamma'"),
        (lambda: convert(make_host("ovis2"), AlignConfig(kept_tokens=5)), "kept_tokens"),
        (lambda: convert(make_host("ovis2"), vocab_size=V + 1), "vocab_size=61"),
        (lambda: convert(convert(make_host("ovis2"))), "already"),
        (lambda: convert(make_host("smolvlm").model), "SmolVLMForConditionalGeneration"),
        (lambda: convert(make_host("smolvlm").model.text_model), ", ".join(HOSTS)),
        (lambda: convert(torch.nn.Linear(2, 2)), "'Linear'"),
    ],
)
def test_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_report_counts(kind: str, tied: bool) -> None:
    host = make_host(kind, tied)
    report = describe(host, new := convert(host))
    assert report.tied == tied and (report.vocabulary, report.table_rows) == (IMAGE, V)
    assert report.parameters_before == sum(p.numel() for p in host.parameters())
    assert report.parameters_after == sum(p.numel() for p in new.parameters())
    change = report.connector_after - report.connector_before
    assert report.parameters_after - report.parameters_before == change
