"""Packing: fewer rows, the same losses and gradients, and no sample sees another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from alignvlm.data import encode
from alignvlm.data.collate import Collator
from alignvlm.data.records import make_record
from alignvlm.errors import AlignVLMError, ConfigError
from alignvlm.model.packing import Packed, check_packing, first_fit

TALK = [("Who signed?", "Maria Lopez."), ("And what is the total of it?", "$1,234.50")]


# --- rows --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_every_token_has_one_place_and_comes_back(lengths: list[int]) -> None:
    if not any(lengths):
        return
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    packed = Packed.of(mask)
    values = torch.arange(1.0, 1 + 2 * mask.numel()).view(*mask.shape, 2)
    rows = packed.pack(values)
    assert len(rows) <= sum(1 for length in lengths if length)
    assert rows.shape[1] == max(lengths)
    assert torch.equal(packed.unpack(rows), values * mask[..., None])
    there = packed.target[mask.bool()]
    assert len(there.unique()) == sum(lengths)
    for sample, length in enumerate(lengths):
        places = packed.target[sample][mask[sample].bool()]
        assert packed.positions.flatten()[places].tolist() == list(range(length))


def test_short_samples_fill_the_rows_of_the_longest() -> None:
    assert first_fit([3, 8, 5, 0, 2, 6], 8) == [[1], [5, 4], [2, 0]]
    assert first_fit([4, 4, 4], 4) == [[0], [1], [2]]


# --- the model ---------------------------------------------------------------------------------


@pytest.fixture
def samples(make_config, make_processor, images, make_image) -> list[dict[str, Any]]:
    """Two, no, one, three and no pages, with targets; the third has two turns."""
    config = make_config("align")
    processor = make_processor(config)
    wide = make_image(84, 56, 5)
    records = [
        make_record("two", images[:2], TALK[:1], source="t"),
        make_record("none", [], [("Hi?", "Yes.")], source="t"),
        make_record("one", [wide], TALK, source="t"),
        make_record("three", [*images[1:], images[0]], [("What?", "A table.")], source="t"),
        make_record("short", [], [("Date?", "May")], source="t"),
    ]
    found = []
    for number, record in enumerate(records):
        sample = encode.encode(record, processor)
        if "pixel_values" in sample:
            shape = (len(sample["pixel_values"]), config.tokens_per_tile)
            generator = torch.Generator().manual_seed(number)
            targets = torch.randint(0, 300, shape, generator=generator)
            sample["vocab_targets"] = targets.masked_fill(targets % 3 == 0, config.blank_token_id)
            sample["pixel_values"] = sample["pixel_values"].double()
        found.append(sample)
    return found


def batch_of(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Positions start at 0 behind the padding: rotary angles are fp32 even in an fp64 model."""
    batch = Collator(2)(samples)
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)}


def dropping(model: Any, batch: dict[str, Any], part: float) -> None:
    """Set the threshold so that this part of the visual tokens is blank."""
    features = model.model.encode_tiles(batch["pixel_values"])
    blank = model.model.connector.vocab_distribution(features)[..., model.config.blank_token_id]
    model.config.blank_threshold = float(blank.flatten().quantile(1 - part))


def losses_and_gradients(model: Any, batch: dict[str, Any], **extra: Any) -> tuple[Any, Any]:
    model.zero_grad()
    output = model(**batch, use_cache=False, **extra)
    output.loss.backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("blank", [0.0, 0.6])
@pytest.mark.parametrize("skip_logits", [True, False])
def test_losses_and_gradients_are_those_of_padded_samples(
    make_model, samples, attention: str, blank: float, skip_logits: bool
) -> None:
    model = make_model("align").double()
    batch = batch_of(samples)
    if blank:
        dropping(model, batch, blank)
    keys: dict[str, Any] = {"skip_logits": skip_logits, "num_items_in_batch": 17}
    rows = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["inputs_embeds"].shape[0]),
        with_kwargs=True,
    )
    padded, expected = losses_and_gradients(model, batch, **keys)
    # eager attention takes its softmax in fp32, and gives no number at padding in fp64
    model.set_attn_implementation(attention)
    rtol, atol = (1e-11, 1e-11) if attention == "sdpa" else (1e-5, 1e-5)
    packed, found = losses_and_gradients(model, batch, packing=True, **keys)
    assert rows[1] < rows[0] == 5
    for part in ("loss", "lm_loss", "vocab_loss"):
        torch.testing.assert_close(packed[part], padded[part], rtol=rtol, atol=0)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e3 * rtol, atol=atol)


def test_the_loss_is_that_of_each_sample_alone(make_model, samples) -> None:
    model = make_model("align").double()
    with torch.no_grad():
        alone = sum(
            float(model(**batch_of([sample]), num_items_in_batch=1).lm_loss) for sample in samples
        )
        packed = model(**batch_of(samples), packing=True, num_items_in_batch=1).lm_loss
    assert float(packed) == pytest.approx(alone, rel=1e-6)  # cross-entropy is fp32


@pytest.mark.parametrize("blank", [0.0, 0.6])
def test_no_sample_sees_another(make_model, samples, blank: float) -> None:
    model = make_model("align").double()
    batch = batch_of(samples)
    if blank:
        dropping(model, batch, blank)
    with torch.no_grad():
        before = model(**batch, packing=True).logits
        for changed in (1, 4):  # texts, so that the others keep their rows
            other = dict(batch, input_ids=batch["input_ids"].clone())
            other["input_ids"][changed, -4:] = torch.tensor([40, 50, 60, 70])
            after = model(**other, packing=True).logits
            rest = [row for row in range(5) if row != changed]
            assert torch.equal(after[rest], before[rest])
            assert not torch.equal(after[changed], before[changed])


def test_hidden_states_come_back_and_attentions_are_refused(make_model, samples) -> None:
    model = make_model("align").double()
    batch = batch_of(samples)
    there = batch["attention_mask"].bool()
    with torch.no_grad():
        padded = model(**batch, output_hidden_states=True).hidden_states
        packed = model(**batch, packing=True, output_hidden_states=True).hidden_states
    for a, b in zip(padded, packed, strict=True):
        torch.testing.assert_close(a[there], b[there], rtol=1e-9, atol=1e-11)
    with pytest.raises(AlignVLMError, match="packed prompts give no attentions"):
        model(**batch, packing=True, output_attentions=True)


# --- which language models can -------------------------------------------------------------------

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def language_model(kind: str, attention: str = "sdpa", **over: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **over})
    return AutoModel.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3"])
def test_usual_language_models_can(kind: str, attention: str) -> None:
    over = {"sliding_window": 4} if kind in ("gemma3_text", "mistral") else {}
    model = language_model(kind, attention, **over).train()
    check_packing(model)
    assert model.training


def test_a_state_that_runs_on_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"packing: .*'mamba'.*; set packing: false") as caught:
        check_packing(language_model("mamba", "eager"))
    assert "\n" not in str(caught.value)


def test_attention_that_ignores_the_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama")
    forward = model.forward

    def one_row(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        places = torch.arange(position_ids.shape[1]).expand_as(position_ids)
        return forward(*args, position_ids=places, **kwargs)

    monkeypatch.setattr(model, "forward", one_row)
    with pytest.raises(ConfigError, match="a sample would see its neighbours; set packing: false"):
        check_packing(model)
