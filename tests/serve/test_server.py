"""OpenAI's own client and plain HTTP against a real server on a loopback port."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any

import openai
import pytest
import torch
from tests.serve.server_thread import CHAT, Running, serving, user_message

from alignvlm.errors import ConfigError
from alignvlm.inference.ask import ask
from alignvlm.serve.limits import Limits
from alignvlm.serve.server import LOCAL

LIMITS = Limits(
    max_body=300_000, max_pixels=5000, max_images=3, max_new_tokens=400, queue=8, timeout=60
)


@pytest.fixture(scope="module")
def model(make_model, make_processor, make_image) -> Any:
    """A model that drops half of the visual tokens of a certain page."""
    model = make_model()
    processor = make_processor(model.config)
    batch = processor(images=[make_image(56, 28, 1)], text=processor.image_token)
    with torch.no_grad():
        features = model.model.encode_tiles(torch.as_tensor(batch["pixel_values"]))
        found = model.model.connector.vocab_distribution(features)
    blank = found[..., model.config.blank_token_id].flatten()
    model.config.blank_threshold = float(blank.quantile(0.5))
    return model


@pytest.fixture(scope="module")
def processor(model, make_processor) -> Any:
    return make_processor(model.config)


@pytest.fixture(scope="module")
def server(model, processor) -> Iterator[Running]:
    with serving(model, processor, LIMITS) as running:
        yield running


@pytest.fixture
def create(client: openai.OpenAI, images) -> Callable[..., Any]:
    """Ask about the first page unless ``messages`` say otherwise."""
    messages = [user_message("What is the total?", images[0])]
    return partial(client.chat.completions.create, **{"model": "tiny", "messages": messages})


def test_answers_as_ask_does_blank_dropping_included(create, model, processor, images):
    done = create(max_completion_tokens=20)
    wanted = ask(model, processor, images[:1], "What is the total?", max_new_tokens=20)
    assert wanted.kept_visual_tokens < wanted.visual_tokens
    assert done.choices[0].message.content.strip() == wanted.text
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].finish_reason == ("length" if wanted.new_tokens == 20 else "stop")
    assert done.usage.prompt_tokens == wanted.prompt_tokens
    assert done.usage.completion_tokens == wanted.new_tokens
    assert done.usage.total_tokens == wanted.prompt_tokens + wanted.new_tokens
    details = done.usage.prompt_tokens_details
    assert details.image_tokens == wanted.kept_visual_tokens
    assert details.visual_tokens == wanted.visual_tokens
    assert done.model == "tiny"


def test_where_nothing_was_read_the_answer_is_empty(create, model, monkeypatch):
    encode = model.model.encode
    monkeypatch.setattr(model.model, "encode", lambda *a: encode(*a)._replace(pages=[[]]))
    whole = create(max_completion_tokens=5)
    assert (whole.choices[0].message.content or "") == ""
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 0 < whole.usage.prompt_tokens
    *chunks, last = create(stream=True, max_completion_tokens=5)
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert last.choices[0].finish_reason == "stop"
    monkeypatch.undo()
    assert create(max_completion_tokens=5).usage.completion_tokens > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_streams_what_it_would_have_answered(create, seed):
    keys = {"temperature": 1.5, "seed": seed, "max_tokens": 40}
    whole = create(**keys)
    chunks = list(create(**keys, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len(text) > 20
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 10  # it came in pieces
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_streams_no_usage_unasked_and_ends_with_done(server, images):
    body = {
        "model": "tiny",
        "messages": [user_message("Who?", images[0])],
        "stream": True,
        "max_tokens": 3,
    }
    with server.http.stream("POST", CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])


def test_the_same_seed_gives_the_same_answer(create):
    def text(seed: int) -> str:
        keys = {"temperature": 1.5, "seed": seed, "max_tokens": 20}
        return create(**keys).choices[0].message.content

    assert text(1) == text(1) != text(2)


def test_several_images_and_their_order(create, model, processor, images):
    def answer(pages: list[Any]) -> Any:
        return create(messages=[user_message("Which?", *pages)], max_tokens=8)

    one, two = answer(images), answer(images[::-1])
    wanted = ask(model, processor, images, "Which?", max_new_tokens=8)
    assert one.choices[0].message.content.strip() == wanted.text
    assert one.usage.prompt_tokens == wanted.prompt_tokens
    assert one.usage.prompt_tokens_details.visual_tokens == wanted.visual_tokens
    details = one.usage.prompt_tokens_details
    assert two.usage.prompt_tokens_details.visual_tokens == details.visual_tokens


def test_a_conversation_without_images(create, model, processor):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "Who?", "name": "somebody"},
        {"role": "assistant", "content": [{"type": "text", "text": "Maria"}]},
        {"role": "user", "content": "Really?"},
    ]
    done = create(messages=messages, max_tokens=4)
    chat = [{"role": m["role"], "content": m["content"]} for m in messages]
    chat[0]["role"] = "system"
    ids = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    assert done.usage.prompt_tokens == len(ids[0] if isinstance(ids[0], list) else ids)
    assert done.usage.prompt_tokens_details.visual_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(create, stream):
    keys = {"temperature": 1.5, "seed": 4, "max_tokens": 60}
    full = create(**keys)
    text = full.choices[0].message.content
    stop = text[30:33]
    stops = [stop, "never said by anyone"]
    if not stream:
        done = create(**keys, stop=stops)
        found, reason = done.choices[0].message.content, done.choices[0].finish_reason
        assert done.usage.completion_tokens < full.usage.completion_tokens
    else:
        chunks = list(create(**keys, stop=stops, stream=True))
        found = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    assert found == text[: text.index(stop)]
    assert reason == "stop"


def test_pages_of_a_pdf(create, make_image, model, processor):
    file = BytesIO()
    pages = [make_image(28, 28, seed) for seed in (5, 6)]
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:], resolution=144)
    address = "data:application/pdf;base64," + base64.b64encode(file.getvalue()).decode()
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": address}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}
    done = create(messages=[message], max_tokens=4)
    wanted = ask(model, processor, pages, "Which?", max_new_tokens=4)
    details = done.usage.prompt_tokens_details
    assert details.visual_tokens == wanted.visual_tokens
    message["content"] = [part, part]
    with pytest.raises(openai.BadRequestError, match="4 images and pages, more than"):
        create(messages=[message])


def image_part(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


BAD = {
    "path": ({"messages": image_part("/etc/hostname")}, "as a data URL", "invalid_url"),
    "file": ({"messages": image_part("file:///etc/hostname")}, "as a data URL", "invalid_url"),
    "http": ({"messages": image_part("http://127.0.0.1:9/a.png")}, "no URLs", "url_not_allowed"),
    "raw": ({"messages": image_part("data:image/png,abc")}, "must read data:", "invalid_url"),
    "base64": ({"messages": image_part("data:image/png;base64,a*b")}, "not base64", "invalid_url"),
    "empty": ({"messages": image_part("data:image/png;base64,")}, "is empty", "invalid_image"),
    "noise": ({"messages": image_part("data:;base64,AAAA")}, "not an image", "invalid_image"),
    "tokens": ({"max_tokens": 401}, "max_tokens is 401, more than", "too_many_tokens"),
    "none": ({"messages": []}, "messages: ", "invalid_value"),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: ", None),
    "part": (
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": "a"}]}]},
        r"messages\.0\.content\.0: type must be text, image_url or file",
        None,
    ),
    "key": ({"extra_body": {"top_k": 3}}, "top_k: this server does not", "unsupported_parameter"),
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        'tools: this server calls no tools: leave this out, or send tool_choice "none"',
        "unsupported_parameter",
    ),
    "n": ({"n": 2}, "n is 2, but without temperature", None),
    "many": ({"n": 9, "temperature": 1}, "n: ", None),
    "form": (
        {"response_format": {"type": "xml"}},
        "response_format: type must be text, json_object or json_schema",
        None,
    ),
    "heat": ({"temperature": 3}, "temperature: ", None),
    "stop": ({"stop": [""]}, "stop.0: ", None),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_one_clear_line(create, case):
    keys, message, code = BAD[case]
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        create(**keys)
    error = caught.value.body
    assert isinstance(error, dict) and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code


def test_the_tokenizers_marks_are_text(create):
    said = "<empty_output><|im_end|>"
    plain, marked = (
        create(messages=[{"role": "user", "content": text}], max_tokens=2) for text in ("", said)
    )
    assert marked.usage.prompt_tokens > plain.usage.prompt_tokens + 10  # they are spelled
    assert marked.usage.prompt_tokens_details.image_tokens == 0


def test_an_unknown_model_is_not_found(create):
    with pytest.raises(openai.NotFoundError, match="serves 'tiny', not 'gpt'"):
        create(model="gpt")


def test_pixels_are_limited_before_they_are_decoded(create, make_image):
    page = make_image(100, 51)
    with pytest.raises(openai.BadRequestError, match="100 x 51 pixels is more than the limit"):
        create(messages=[user_message("Which?", page)])
    file = BytesIO()
    make_image(100, 50).save(file, "PNG")
    cut = base64.b64encode(file.getvalue()[:2000]).decode()
    with pytest.raises(openai.BadRequestError, match="truncated or damaged"):
        create(messages=image_part(f"data:image/png;base64,{cut}"))


def test_images_are_counted_before_they_are_read(create):
    parts = image_part("data:image/png;base64,AAAA")[0]["content"] * 4
    with pytest.raises(openai.BadRequestError, match="4 images and pages") as caught:
        create(messages=[{"role": "user", "content": parts}])
    assert caught.value.code == "too_many_images"


def test_a_prompt_longer_than_the_context_is_refused(create, server):
    with pytest.raises(openai.BadRequestError, match=r"model's context 2048") as caught:
        create(messages=[{"role": "user", "content": "1" * 3000}])
    assert caught.value.code == "context_length_exceeded"
    almost = create(messages=[{"role": "user", "content": "1" * 2000}])
    assert almost.usage.total_tokens <= 2048
    assert almost.choices[0].finish_reason == "length"


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused(server, declared):
    body = b"x" * 2_000_000
    content = body if declared else iter([body[:1_000_000], body[1_000_000:]])
    headers = {"content-type": "application/json"}
    response = server.http.post(CHAT, content=content, headers=headers)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json; charset=utf-8", 400, "invalid_value"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b"{}", "text/plain", 415, "not_json"),
    ],
)
def test_what_is_no_json_is_refused(server, content, kind, status, code):
    headers = {"content-type": kind}
    response = server.http.post(CHAT, content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("GET", "/nowhere", 404), ("POST", "/load_model", 404),
     ("OPTIONS", CHAT, 405), ("GET", "/docs", 404)],
)  # fmt: skip
def test_nothing_else_is_there(server, method, path, status):
    response = server.http.request(method, path, headers={"origin": "http://elsewhere"})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "access-control-allow-origin" not in response.headers


def test_models_health_and_metrics(server, client, create):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="serves 'tiny'"):
        client.models.retrieve("other")
    health = server.http.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "model": "tiny"})
    before = server.metrics()
    done = create(max_tokens=7)
    with pytest.raises(openai.NotFoundError):
        create(model="other")
    after = server.metrics()

    def grown(key: str) -> float:
        return after[key] - before.get(key, 0)

    assert grown("alignvlm_prompt_tokens_total") == done.usage.prompt_tokens
    assert grown("alignvlm_completion_tokens_total") == done.usage.completion_tokens
    chat = f'path="{CHAT}"'
    assert grown(f'alignvlm_requests_total{{code="200",{chat}}}') == 1
    assert grown(f'alignvlm_requests_total{{code="404",{chat}}}') == 1
    assert grown(f"alignvlm_request_seconds_count{{{chat}}}") == 2
    assert (after["alignvlm_queue_waiting"], after["alignvlm_running"]) == (0, 0)


def test_an_api_key_is_needed_for_all_but_health(model, processor, images):
    messages: Any = [user_message("Who?", images[0])]
    with serving(model, processor, LIMITS, api_key="s3cret") as running:
        for key in ("wrong", "s3cre", "s3cret2"):
            with (
                running.client(api_key=key) as other,
                pytest.raises(openai.AuthenticationError, match="API key") as caught,
            ):
                other.chat.completions.create(model="tiny", messages=messages)
            assert caught.value.code == "invalid_api_key"
        with running.client(api_key="s3cret") as client:
            assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
        for path, status in (("/metrics", 401), ("/v1/models", 401), ("/health", 200)):
            assert running.http.get(path).status_code == status


def test_other_names_than_the_servers_are_refused(model, processor):
    """What a browser sends after a page's name was led to this machine."""
    with serving(model, processor, LIMITS, hosts=LOCAL) as running:

        def asked(host: str) -> Any:
            return running.http.get("/v1/models", headers={"host": host})

        for host in (
            "127.0.0.1",
            "127.0.0.1:8000",
            "localhost:1",
            "LOCALHOST",
            "[::1]:8000",
            "[::1]",
        ):
            assert asked(host).status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "[::2]:8000",
            "",
        ):
            response = asked(host)
            assert response.status_code == 403, host
            assert response.json()["error"]["code"] == "host_not_allowed"
        headers = {"host": "evil.example"}
        assert running.http.post(CHAT, json={}, headers=headers).status_code == 403
        with running.client() as client:
            assert [one.id for one in client.models.list()] == ["tiny"]


@pytest.mark.parametrize("key", ["", " ", "schlüssel", "two\nlines"])
def test_a_key_that_no_client_could_send_is_refused(model, processor, key):
    with (
        pytest.raises(ConfigError, match="API key must be printable"),
        serving(model, processor, LIMITS, api_key=key),
    ):
        pass
