"""The faster step says what transformers' own layers say, and stands aside where it cannot."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
)

from alignvlm.errors import AlignVLMError
from alignvlm.inference.embed import bare_language_model
from alignvlm.inference.stopping import Stopped, stoppable
from alignvlm.model.stepping import ROWS, Step

GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
WIDER = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def count(monkeypatch) -> list[int]:
    """Filled with the rows of each step that was made."""
    made: list[int] = []
    call = Step.__call__

    def counted(self: Step, model: Any, ids: Any, *rest: Any) -> Any:
        made.append(len(ids))
        return call(self, model, ids, *rest)

    monkeypatch.setattr(Step, "__call__", counted)
    return made


@pytest.fixture(scope="module")
def pair(make_model) -> tuple[Any, Any]:
    """A model as it is made, and hastened."""
    model = make_model(text=WIDER)
    hastened = copy.deepcopy(model)
    hastened.hasten()
    return model, hastened


def prompt(model: Any, rows: int, length: int, seed: int, pads: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, model.config.text_config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :pads] = 0
    return {"input_ids": ids, "attention_mask": mask}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, ROWS), st.integers(2, 40), st.integers(0, 99), st.integers(1, 12))
def test_same_tokens_and_logits_as_transformers(pair, rows, length, seed, new):
    plain, _ = pair
    keys = {"max_new_tokens": new, "return_dict_in_generate": True, "output_logits": True}
    inputs = prompt(plain, rows, length, seed, pads=length // 2 if rows > 1 else 0)
    said = [m.generate(**inputs, **GREEDY, **keys) for m in pair]
    assert torch.equal(said[0].sequences, said[1].sequences)
    for theirs, ours in zip(said[0].logits, said[1].logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_token_after_the_first_is_a_step(pair, count):
    _, hastened = pair
    hastened.generate(**prompt(hastened, 1, 9, 0), **GREEDY, max_new_tokens=7, eos_token_id=-1)
    assert count == [1] * 6


def test_it_ends_at_the_end_token(pair, count):
    plain, hastened = pair
    inputs = prompt(plain, 1, 9, 1)
    free = plain.generate(**inputs, **GREEDY, max_new_tokens=8, eos_token_id=-1)[0, 9:]
    for end in set(free.tolist()):
        keys = {**GREEDY, "max_new_tokens": 8, "eos_token_id": end}
        said = hastened.generate(**inputs, **keys)
        assert torch.equal(said, plain.generate(**inputs, **keys))
        assert said[0, -1] == end


def test_criteria_processors_and_streams_see_the_same(pair, count):
    class Seen(LogitsProcessor):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.told.append(input_ids.shape[1])
            return scores

    class Stream(StoppingCriteria):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            self.told.append(input_ids.shape[1])
            return torch.zeros(len(input_ids), dtype=torch.bool)

        def put(self, ids: Any) -> None:
            self.told.append(ids.flatten().tolist())

        def end(self) -> None:
            self.told.append("end")

    told = []
    for model in pair:
        scores, ends = Seen(), Stream()
        model.generate(
            **prompt(model, 1, 6, 3), **GREEDY, max_new_tokens=6, eos_token_id=-1, streamer=ends,
            logits_processor=LogitsProcessorList([scores]), stopping_criteria=[ends],
        )  # fmt: skip
        told.append((scores.told, ends.told))
    assert told[0] == told[1] and len(count) == 5


@pytest.mark.parametrize("keys", [{"num_beams": 3}, {"do_sample": True, "top_k": 3}])
def test_beams_and_samples_are_the_same_too(pair, keys):
    said = []
    for model in pair:
        torch.manual_seed(0)
        inputs = prompt(model, 1, 9, 5)
        said.append(model.generate(**inputs, **{**GREEDY, **keys}, max_new_tokens=6))
    assert torch.equal(*said)


@pytest.mark.parametrize(
    "keys",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
)
def test_what_a_step_cannot_give_is_left_to_transformers(pair, count, keys):
    said = [m.generate(**prompt(m, 1, 9, 5), **GREEDY, max_new_tokens=4, **keys) for m in pair]
    assert torch.equal(*said) and not count


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_hidden_states_and_attentions_come_from_the_layers(pair, count, asked):
    hastened = copy.deepcopy(pair[0])  # transformers leaves its hooks behind, so no step follows
    hastened.hasten()
    with torch.no_grad():
        seen = hastened(**prompt(hastened, 1, 5, 0), use_cache=True)
        name = "cache" if "cache" in seen else "past_key_values"
        more = hastened(torch.tensor([[7]]), **{name: seen[name], asked: True})
    assert more[asked.removeprefix("output_")] is not None and not count


def test_more_rows_are_left_to_transformers(pair, count):
    hastened = pair[1]
    hastened.generate(**prompt(hastened, ROWS + 1, 5, 0), **GREEDY, max_new_tokens=3)
    assert not count


def test_gradients_and_drafts_are_left_to_transformers(pair, count):
    plain, hastened = pair
    inputs = prompt(plain, 1, 9, 5)
    drafts = {**GREEDY, "prompt_lookup_num_tokens": 3, "max_new_tokens": 8}
    assert torch.equal(hastened.generate(**inputs, **drafts), plain.generate(**inputs, **drafts))
    made = len(count)
    cache = hastened(**inputs, use_cache=True)
    name = "cache" if "cache" in cache else "past_key_values"
    again = hastened(inputs["input_ids"][:, -1:], **{name: cache[name]})
    assert again.logits.requires_grad and len(count) == made


@pytest.mark.parametrize("change", ["a weight", "the head", "another module", "half", "a hook"])
def test_changed_weights_are_followed(make_model, change, count):
    model = make_model(text=WIDER)
    model.hasten()
    layer = model.model.language_model.layers[0]
    with torch.no_grad():
        if change == "a weight":
            layer.self_attn.k_proj.weight.mul_(-2)
        elif change == "the head":
            model.lm_head.weight.mul_(-2)
        elif change == "another module":
            layer.mlp.up_proj = torch.nn.Linear(32, 48, bias=True)
        elif change == "half":
            model.to(torch.bfloat16)
        else:
            layer.register_forward_hook(lambda _, inputs, output: output * -1)
    keys = {**GREEDY, "max_new_tokens": 6, "eos_token_id": -1}
    inputs = prompt(model, 1, 9, 5)
    said = model.generate(**inputs, **keys)
    assert bool(count) == (change in ("a weight", "the head"))
    model._step = None
    assert torch.equal(said, model.generate(**inputs, **keys))


def test_the_work_can_be_ended_between_layers(pair):
    hastened = pair[1]
    calls = iter(range(100))
    with stoppable(hastened, lambda: next(calls) > 10), pytest.raises(Stopped):
        hastened.generate(**prompt(hastened, 1, 9, 5), **GREEDY, max_new_tokens=20)


@pytest.mark.parametrize("text", [{"hidden_act": "gelu"}, {"attention_bias": True}])
def test_other_language_models_are_left_alone(make_model, text):
    model = make_model(text=text)
    before = {key: value.stride() for key, value in model.state_dict().items()}
    model.hasten()
    assert model._step is None
    assert before == {key: value.stride() for key, value in model.state_dict().items()}


def test_a_hastened_model_is_saved_as_it_was(make_model, tmp_path):
    model = make_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.hasten()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in before.items())


def test_the_language_model_alone_is_saved_too(make_model, tmp_path, count):
    model = make_model(text=WIDER)
    before = {k: v.clone() for k, v in model.model.language_model.state_dict().items()}
    model.hasten()
    bare_language_model(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())
    model.generate(**prompt(model, 1, 5, 0), max_new_tokens=3, **GREEDY)
    assert not count  # it goes on as it was before


def test_drafts_for_embeddings_are_still_refused(pair):
    plain, hastened = pair
    embeds = plain.get_input_embeddings()(prompt(plain, 1, 4, 0)["input_ids"])
    with pytest.raises(AlignVLMError):
        hastened.generate(inputs_embeds=embeds, **GREEDY, prompt_lookup_num_tokens=2)
