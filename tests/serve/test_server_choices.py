"""Several answers to one request, and the log-probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import openai
import pytest
import torch
from tests.serve.server_thread import Running, serving, user_message

from alignvlm.inference.prompt import build_prompts, chat
from alignvlm.serve.limits import Limits

KEYS: dict[str, Any] = {"temperature": 1.5, "seed": 4, "max_tokens": 30}


@pytest.fixture(scope="module")
def model(make_model) -> Any:
    return make_model()


@pytest.fixture(scope="module")
def processor(model, make_processor) -> Any:
    return make_processor(model.config)


@pytest.fixture(scope="module")
def server(model, processor) -> Iterator[Running]:
    with serving(model, processor, Limits()) as running:
        yield running


@pytest.fixture
def create(client: openai.OpenAI, images) -> Callable[..., Any]:
    messages = [user_message("Who?", images[0])]
    return partial(client.chat.completions.create, **{"model": "tiny", "messages": messages})


def test_n_answers_differ_and_are_counted_together(create, server):
    before = server.metrics()["alignvlm_completion_tokens_total"]
    one, three = create(**KEYS), create(**KEYS, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert texts[0] == one.choices[0].message.content
    assert len(set(texts)) == 3
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > 2 * one.usage.completion_tokens
    assert texts == [choice.message.content for choice in create(**KEYS, n=3).choices]
    spent = one.usage.completion_tokens + 2 * three.usage.completion_tokens
    assert server.metrics()["alignvlm_completion_tokens_total"] - before == spent


def test_n_answers_are_streamed_by_index(create):
    whole = create(**KEYS, n=2)
    texts, reasons, roles = ["", ""], ["", ""], [0, 0]
    *chunks, last = create(**KEYS, n=2, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or ""
        roles[choice.index] += choice.delta.role == "assistant"
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == [1, 1]
    assert last.usage == whole.usage


def test_logprobs_are_the_models_own(create, model, processor, images):
    """Of the first token, against a forward pass; temperature has no part in them."""
    prompt = build_prompts(model, processor, [chat("Who?", images[:1])])
    inputs = {key: prompt.inputs[key] for key in ("inputs_embeds", "attention_mask")}
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    wanted, ids = logits.log_softmax(-1).topk(5)
    first = create(max_tokens=4, logprobs=True, top_logprobs=5).choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(float(wanted[0]), abs=1e-4)
    assert [one.logprob for one in first.top_logprobs] == pytest.approx(wanted.tolist(), abs=1e-4)
    shown = [processor.tokenizer.decode([i], skip_special_tokens=True) for i in ids.tolist()]
    assert [one.token for one in first.top_logprobs] == shown
    warm = create(**KEYS, logprobs=True, top_logprobs=5).choices[0].logprobs.content[0]
    assert warm.top_logprobs == first.top_logprobs


@pytest.mark.parametrize("stop", [None, "found in the text"])
def test_logprobs_spell_the_answer_also_in_a_stream(create, stop):
    keys = {**KEYS, "logprobs": True}
    if stop is not None:
        keys["stop"] = create(**KEYS).choices[0].message.content[12:15]
    done = create(**keys).choices[0]
    tokens = done.logprobs.content
    said = b"".join(bytes(one.bytes) for one in tokens).decode("utf-8", "replace")
    text = done.message.content
    assert said.startswith(text) if stop else said == text
    assert len(tokens) < KEYS["max_tokens"] if stop else len(tokens) <= KEYS["max_tokens"]
    assert all(one.logprob <= 0 and one.top_logprobs == [] for one in tokens)
    chunks = [chunk.choices[0] for chunk in create(**keys, stream=True)]
    streamed = [one for c in chunks if c.logprobs for one in c.logprobs.content]
    assert streamed == tokens
    assert sum(c.logprobs is not None for c in chunks) > 2  # they came with their text


def test_no_logprobs_unasked(create):
    assert create(max_tokens=2).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n": 2}, "n is 2, but without temperature all answers are the same: send temperature"),
        ({"n": 9, "temperature": 1}, "n: Input should be less than or equal to 8"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less than"),
    ],
)
def test_what_cannot_be_answered(create, keys, message):
    with pytest.raises(openai.BadRequestError, match=message):
        create(**keys)
