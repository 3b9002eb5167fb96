"""What clients send and what changes nothing: the answer is the same as without it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any

import openai
import pytest
from tests.serve.server_thread import CHAT, Running, data_url, serving, user_message

from alignvlm.serve.limits import Limits

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(make_model, make_processor) -> Iterator[Running]:
    model = make_model()
    with serving(model, make_processor(model.config), Limits()) as running:
        yield running


@pytest.fixture
def create(client: openai.OpenAI, images) -> Callable[..., Any]:
    keys = {"model": "tiny", "max_tokens": 6, "messages": [user_message("Who?", images[0])]}
    return partial(client.chat.completions.create, **keys)


def said(done: Any) -> tuple[str, int]:
    return done.choices[0].message.content, done.usage.prompt_tokens


NOTHING = {
    "logprobs": {"logprobs": False},
    "top_logprobs": {"logprobs": False, "top_logprobs": 0},
    "no tools": {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    "tools not to be called": {"tools": [TOOL], "tool_choice": "none"},
    "functions": {"functions": [], "function_call": "none"},
    "logit_bias": {"logit_bias": {}},
    "penalties": {"presence_penalty": 0, "frequency_penalty": 0},
    "names": {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
    "keeping": {"store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
    "text": {"modalities": ["text"], "response_format": {"type": "text"}, "n": 1},
    "effort": {"reasoning_effort": "none", "prediction": {"type": "content", "content": "a"}},
    "nulls": {"extra_body": {"audio": None, "stop": None, "top_k": None, "web": None}},
}


@pytest.mark.parametrize("case", NOTHING)
def test_fields_that_change_nothing_are_taken(create, case):
    assert said(create(**NOTHING[case])) == said(create())


def test_an_answer_can_be_sent_again_as_it_came(create, images):
    question = user_message("Who?", images[0])
    answer = create().choices[0].message
    plain = {"role": "assistant", "content": answer.content}
    sent = answer.model_dump() | {"annotations": [], "tool_calls": [], "audio": None}
    more = {"role": "user", "content": "Really?"}
    again = [said(create(messages=[question, one, more])) for one in (plain, sent)]
    assert again[0] == again[1]


def test_an_assistant_may_have_said_nothing(create, images):
    question, more = user_message("Who?", images[0]), {"role": "user", "content": "Really?"}
    empty, null, missing, refused = (
        said(create(messages=[question, {"role": "assistant", **one}, more]))
        for one in ({"content": ""}, {"content": None}, {}, {"refusal": "I cannot."})
    )
    assert empty == null == missing
    assert refused[1] > empty[1]
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content: Field required"):
        create(messages=[{"role": "user", "content": None}])


def spelled(url: str) -> dict[str, Any]:
    head, payload = url.split(",")
    lines = "\r\n".join(payload[i : i + 76] for i in range(0, len(payload), 76))
    safe = payload.replace("+", "-").replace("/", "_")
    return {
        "line breaks": {"url": f"{head},{lines}\n"},
        "no padding": {"url": f"{head},{payload.rstrip('=')}"},
        "capitals": {"url": f"DATA:IMAGE/PNG;BASE64,{payload}"},
        "safe in addresses": {"url": f"{head},{safe}"},
        "percent signs": {"url": f"{head},{payload.replace('+', '%2B').replace('=', '%3D')}"},
        "a plain string": url,
        "any detail": {"url": url, "detail": "original"},
    }


@pytest.mark.parametrize("case", spelled("data:,"))
def test_base64_may_be_written_in_many_ways(create, make_image, case):
    image = next(
        url
        for seed in range(30)
        if (url := data_url(make_image(56, 28 + seed))).endswith("=") and {"+", "/"} < set(url)
    )
    text = {"type": "text", "text": "Who?"}

    def asked(address: Any) -> tuple[str, int]:
        part = {"type": "image_url", "image_url": address}
        return said(create(messages=[{"role": "user", "content": [part, text]}]))

    assert asked(spelled(image)[case]) == asked({"url": image})


def test_a_pdf_may_come_as_base64_alone(create, make_image):
    file = BytesIO()
    make_image(28, 28, 5).save(file, "PDF", resolution=144)
    bare = base64.b64encode(file.getvalue()).decode()

    def asked(data: str) -> tuple[str, int]:
        part = {"type": "file", "file": {"filename": "a.pdf", "file_data": data}}
        return said(create(messages=[{"role": "user", "content": [part]}]))

    assert asked(bare) == asked(f"data:application/pdf;base64,{bare}")


def file_part(**file: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "file", "file": file}]}]}


REFUSED = {
    "tools": ({"tools": [TOOL]}, "leave this out, or send tool_choice"),
    "must call": ({"tool_choice": "required"}, "tool_choice: this server calls no tools"),
    "bias": ({"logit_bias": {"5": 1}}, "logit_bias: .* leave it out or send {}"),
    "penalty": ({"presence_penalty": 1}, "frequency_penalty only: leave it out or send 0"),
    "effort": ({"reasoning_effort": "high"}, 'leave it out or send "none"'),
    "sound": ({"modalities": ["audio"]}, r'send \["text"\]'),
    "unknown": ({"extra_body": {"top_k": 3}}, "does not know or support this field: leave it out"),
    "file id": (file_part(file_data="AAAA", file_id="a"), "send the file itself in base64"),
    "file name": (file_part(file_data="report.pdf"), "send its bytes through base64"),
    "responses": (
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]},
        "input_text, input_image, input_file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_change(create, case):
    keys, message = REFUSED[case]
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        create(**keys)
    assert "\n" not in caught.value.body["message"]  # type: ignore[index]


def test_other_paths_are_named_with_those_that_are_there(client, server):
    with pytest.raises(openai.NotFoundError, match=r"/v1/responses.*POST /v1/chat/completions"):
        client.responses.create(model="tiny", input="Who?")
    refused = server.http.post("/v1/embeddings", json={})
    assert "POST /v1/chat/completions" in json.dumps(refused.json())
    assert server.http.post(CHAT, content=b"").status_code == 415
