"""Questions about one page in one sample: each sees the page alone, and learns the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from alignvlm.data import encode
from alignvlm.data.collate import Collator
from alignvlm.data.questions_together import together
from alignvlm.data.records import Record, make_record
from alignvlm.errors import AlignVLMError
from alignvlm.model import branches

ASKED = [
    ("What is the total?", "$1,234.50"), ("What is the date?", "May"), ("Who signed?", "Maria")
]  # fmt: skip


@pytest.fixture
def records(make_image) -> list[Record]:
    page = make_image(84, 56, 5)
    return [make_record(f"q{i}", [page], [turn], source="t") for i, turn in enumerate(ASKED)]


@pytest.fixture
def processor(make_config, make_processor) -> Any:
    return make_processor(make_config("align"))


def batch_of(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Positions start at 0 behind the padding: rotary angles are fp32 even in an fp64 model."""
    batch = Collator(2)(samples)
    batch["pixel_values"] = batch["pixel_values"].double()
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)}


def drop(model: Any, batch: dict[str, Any], part: float) -> None:
    """Set the threshold so that this part of the visual tokens is blank, between two of them."""
    features = model.model.encode_tiles(batch["pixel_values"])
    blank = model.model.connector.vocab_distribution(features)[..., model.config.blank_token_id]
    ordered = blank.detach().flatten().sort().values
    place = round((1 - part) * len(ordered))
    model.config.blank_threshold = float(ordered[place - 1 : place + 1].mean())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("blank", [0.0, 0.6])
def test_losses_and_gradients_are_those_of_the_questions_alone(
    make_model, processor, records, attention: str, blank: float
) -> None:
    model = make_model("align").double()
    model.set_attn_implementation(attention)
    apart = [batch_of([encode.encode(record, processor)]) for record in records]
    joint = batch_of([encode.encode(together(records), processor)])
    if blank:
        drop(model, joint, blank)
    for batch in apart:
        model(**batch, num_items_in_batch=1).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    loss = model(**joint, num_items_in_batch=1).loss
    loss.backward()
    with torch.no_grad():
        alone = sum(float(model(**batch, num_items_in_batch=1).loss) for batch in apart)
    assert loss.item() == pytest.approx(alone, rel=1e-6)  # cross-entropy is fp32
    assert read[0] < sum(read[1:])  # the page is read once
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_no_question_sees_another(make_model, processor, records) -> None:
    model = make_model("align").double()
    batch = batch_of([encode.encode(together(records), processor)])
    turns = batch["turn_ids"][0]
    assert turns.unique().tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        before = model(**batch).logits[0]
        other = dict(batch, input_ids=batch["input_ids"].clone())
        other["input_ids"][0, turns == 2] = 40
        after = model(**other).logits[0]
    assert torch.equal(after[turns != 2], before[turns != 2])
    assert not torch.equal(after[turns == 2], before[turns == 2])


def test_samples_with_and_without_turns_share_a_batch(make_model, processor, records) -> None:
    model = make_model("align").double()
    samples = [encode.encode(together(records), processor), encode.encode(records[0], processor)]
    with torch.no_grad():
        alone = [float(model(**batch_of([s]), num_items_in_batch=1).loss) for s in samples]
        both = float(model(**batch_of(samples), num_items_in_batch=1).loss)
    assert both == pytest.approx(sum(alone), rel=1e-6)


def test_what_is_visible() -> None:
    seen = branches.visible(torch.tensor([[0, 0, 0, 1, 1, 2]]), torch.tensor([[0, 1, 1, 1, 1, 1]]))
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]
    assert branches.positions(seen)[0].tolist() == [0, 0, 1, 2, 3, 2]


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "over", "can"),
    [
        ("llama", {}, True),
        ("qwen3", {"head_dim": 8}, True),
        ("mistral", {"sliding_window": 4}, False),
        ("mamba", {"state_size": 4}, False),
    ],
)
def test_which_language_models_can(kind: str, over: dict[str, Any], can: bool) -> None:
    config = AutoConfig.for_model(kind, **SIZES, **over)
    model = AutoModel.from_config(config).train()
    assert branches.can_branch(model) is can
    assert model.training


def test_an_attention_without_a_mask_for_each_token_cannot(make_model, monkeypatch) -> None:
    language_model = make_model("align").model.language_model
    assert branches.can_branch(language_model)
    monkeypatch.setattr(language_model.config, "_attn_implementation_internal", "flex_attention")
    assert not branches.can_branch(language_model)


def test_what_cannot_branch_is_refused(make_model, processor, records) -> None:
    batch = batch_of([encode.encode(together(records), processor)])
    with pytest.raises(AlignVLMError, match="one of packing and turn_ids"):
        make_model("align").double()(**batch, packing=True)
    with pytest.raises(AlignVLMError, match="needs 'eager' or 'sdpa' attention"):
        branches.attention(torch.ones(1, 2, 2, dtype=torch.bool), torch.float32, "flex_attention")
