"""Answers in JSON: fields of a page by OpenAI's client, with pages that are given as read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field
from tests.inference.test_span_decoding import a_page
from tests.serve.server_thread import Running, serving, user_message

from alignvlm.documents.page_images import PageImage
from alignvlm.inference import extract as module
from alignvlm.inference.extract import Extractor
from alignvlm.inference.page_spans import PageSpans
from alignvlm.inference.prompt import build_prompts, chat, encode_pages
from alignvlm.serve.limits import Limits


class Receipt(BaseModel):
    total: Decimal | None = None
    issued: date | None = Field(None, description="When was it printed?")


@pytest.fixture(scope="module")
def parts(make_model, make_processor) -> tuple[Any, Any]:
    model = make_model()
    return model, make_processor(model.config)


@pytest.fixture(scope="module")
def server(parts) -> Iterator[Running]:
    with serving(*parts, Limits()) as running:
        yield running


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The questions of all fields, in order."""
    questions: list[str] = []
    own = module.answer_together

    def noted(model: Any, processor: Any, page: Any, some: list[str], *a: Any, **k: Any) -> Any:
        questions.extend(some)
        return own(model, processor, page, some, *a, **k)

    monkeypatch.setattr(module, "answer_together", noted)
    return questions


@pytest.fixture
def page(monkeypatch, make_image) -> Callable[..., Any]:
    """``page("line", ...)``: a picture on which that is read; answers are words of it."""
    known: dict[int, Any] = {}

    def encoded(model: Any, processor: Any, pages: list[Any]) -> Any:
        read = [known[page.width] for page in pages]
        return encode_pages(model, processor, pages)._replace(pages=read)

    monkeypatch.setattr(module, "encode_pages", encoded)
    monkeypatch.setattr(PageSpans, "absent", "")

    def made(*lines: str) -> Any:
        width = 56 + len(known)
        known[width] = a_page(*lines)
        return make_image(width, 28, width)

    return made


@pytest.fixture
def create(client: openai.OpenAI) -> Callable[..., Any]:
    return partial(client.chat.completions.create, model="tiny")


def schema(strict: bool = False, **properties: Any) -> dict[str, Any]:
    own = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "json_schema",
        "json_schema": {"name": "receipt", "schema": own, "strict": strict},
    }


def test_a_pydantic_model_comes_back(client, page):
    messages: Any = [user_message("Read the receipt.", page("136.94"))]
    done = client.chat.completions.parse(model="tiny", messages=messages, response_format=Receipt)
    message = done.choices[0].message
    assert message.parsed == Receipt(total=Decimal("136.94"), issued=None)
    assert json.loads(message.content or "") == {"total": 136.94, "issued": None}
    own = message.fields  # type: ignore[attr-defined]
    assert (own["total"]["text"], own["total"]["page"]) == ("136.94", 1)
    assert len(own["total"]["boxes"]) == 1
    assert 0 <= own["total"]["confidence"] <= 1
    assert own["issued"]["note"] == "'136.94' is no date"


def test_values_are_those_of_extract_and_each_property_is_a_question(create, parts, page, asked):
    image = page("Novak Deli", "12 cups", "Total 136.94")
    form = schema(
        seller={"type": "string", "description": "Who sells?"},
        cups={"type": ["integer", "null"]},
        total_paid={"type": "number"},
    )
    done = create(messages=[user_message("Read it.", image)], response_format=form)
    assert asked == ["Who sells?", "What is the cups?", "What is the total paid?"]
    wanted = Extractor(*parts, form["json_schema"]["schema"])([PageImage(image, "x", 1)])
    found = json.loads(done.choices[0].message.content)
    assert found == {
        name: float(v) if isinstance(v := own.value, Decimal) else v
        for name, own in wanted.values.items()
    }
    assert list(found) == ["seller", "cups", "total_paid"]
    assert done.choices[0].finish_reason == "stop"


def test_a_page_counts_once_however_many_fields(create, parts, page):
    image = page("136.94")
    names = [f"field {i}" for i in range(11)]  # more than one batch
    form = schema(**{name: {"type": "string"} for name in names})
    usage = create(messages=[user_message("Read.", image)], response_format=form).usage
    one = [build_prompts(*parts, [chat(f"What is the {name}?", [image])]) for name in names]
    alone = sum(prompt.lengths[0] for prompt in one)
    assert one[0].lengths[0] < usage.prompt_tokens < alone
    assert usage.prompt_tokens_details.visual_tokens == one[0].visual_tokens[0]
    assert usage.completion_tokens >= len(names)


def test_one_property_is_asked_in_the_messages_own_words(create, page, asked):
    messages = [user_message("Who signed?", page("NAIRO"))]
    form = schema(answer={"type": "string"})
    done = create(messages=messages, response_format=form)
    assert asked == ["Who signed?"]
    assert json.loads(done.choices[0].message.content) == {"answer": "NAIRO"}


def test_the_surest_of_several_pages(create, page):
    pages = [page("NAIRO"), page(), page("KAMPA")]
    form = schema(town={"type": "string"}, other={"type": "string"})
    done = create(messages=[user_message("Read.", *pages)], response_format=form)
    found = done.choices[0].message.fields["town"]
    assert found["page"] == {"NAIRO": 1, "KAMPA": 3}[found["text"]]


def test_strict_gives_no_answer_rather_than_one_that_breaks_the_schema(create, page):
    messages = [user_message("Read.", page("03/04/2018"))]
    day = {"type": "string", "format": "date"}
    loose = create(messages=messages, response_format=schema(issued=day)).choices[0].message
    assert json.loads(loose.content) == {"issued": None}
    strict = create(messages=messages, response_format=schema(True, issued=day)).choices[0].message
    assert strict.content is None
    assert strict.refusal.startswith(
        "no value for 'issued', which the schema requires: '03/04/2018': 2018-03-04 or 2018-04-03?"
    )
    assert "allow null" in strict.refusal
    assert "--" not in strict.refusal


def test_json_is_streamed_too(create, page):
    messages = [user_message("Read.", page("136.94"))]
    form = schema(total={"type": "number"})
    whole = create(messages=messages, response_format=form)
    options = {"include_usage": True}
    *chunks, last = create(
        messages=messages, response_format=form, stream=True, stream_options=options
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content == '{"total": 136.94}'
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].delta.fields == whole.choices[0].message.fields
    assert last.usage == whole.usage


def test_a_json_object_in_the_message_is_the_schema(create, page, asked):
    question = 'Answer as JSON, {like this}: {"company": "", "total_paid": 0}'
    messages = [user_message(question, page("136.94"))]
    done = create(messages=messages, response_format={"type": "json_object"})
    assert asked == ["What is the company?", "What is the total paid?"]
    found = json.loads(done.choices[0].message.content)
    assert found == {"company": "136.94", "total_paid": 136.94}


def test_without_one_the_answer_is_wrapped(create, images):
    keys = {"messages": [user_message("Who?", images[0])], "max_tokens": 8}
    plain = create(**keys)
    done = create(**keys, response_format={"type": "json_object"})
    text = plain.choices[0].message.content.strip()
    assert json.loads(done.choices[0].message.content) == {"answer": text}
    assert done.usage == plain.usage
    assert done.choices[0].finish_reason == plain.choices[0].finish_reason
    two = create(**keys, response_format={"type": "json_object"}, temperature=1.5, n=2)
    assert len({json.loads(c.message.content)["answer"] for c in two.choices}) == 2


ONE = {"total": {"type": "number"}}
BAD = {
    "table": (schema(items={"type": "array"}), {}, "'items' is an array: .* one flat object"),
    "nested": (schema(seller={"type": "object"}), {}, "type 'object' cannot be extracted"),
    "choices": (schema(kind={"type": "string", "enum": ["a"]}), {}, "'kind' has 'enum'"),
    "truth": (schema(paid={"type": "boolean"}), {}, "type 'boolean' cannot be extracted"),
    "nothing": (schema(), {}, "there are no fields"),
    "noise": (schema(a={"type": {}}), {}, "type {} cannot be extracted"),
    "any": (schema(a={"anyOf": 5}), {}, "'anyOf' must be a list"),
    "many": (schema(**{f"f{i}": ONE["total"] for i in range(65)}), {}, "more than 64 properties"),
    "heat": (schema(**ONE), {"temperature": 1}, "surest words of the pages: leave temperature out"),
    "n": (schema(**ONE), {"n": 2, "temperature": 1}, "leave temperature out"),
    "stop": (schema(**ONE), {"stop": "a"}, "leave stop out"),
    "logprobs": (schema(**ONE), {"logprobs": True}, "leave logprobs out"),
    "of json": ({"type": "json_object"}, {"logprobs": True}, "leave logprobs out"),
    "unnamed": ({"type": "json_schema"}, {}, "response_format.json_schema: Field required"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_kind_of_schema_is_not_supported(create, images, case):
    form, keys, message = BAD[case]
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        create(messages=[user_message("Read.", images[0])], response_format=form, **keys)
    assert "\n" not in caught.value.body["message"]  # type: ignore[index]


def test_fields_need_a_page_and_an_encoder_that_reads(create, images):
    with pytest.raises(openai.BadRequestError, match="send a picture or PDF"):
        create(messages=[{"role": "user", "content": "a"}], response_format=schema(**ONE))
    with pytest.raises(openai.BadRequestError, match="whose encoder reads the page"):
        create(messages=[user_message("Read.", images[0])], response_format=schema(**ONE))
    nested = [user_message('{"a": {"b": 1}}', images[0])]
    with pytest.raises(openai.BadRequestError, match="supported are strings and numbers"):
        create(messages=nested, response_format={"type": "json_object"})


def test_a_page_beyond_the_context_is_refused(create, page):
    form = schema(a={"type": "string", "description": "1" * 3000}, b={"type": "string"})
    with pytest.raises(openai.BadRequestError, match="model's context 2048") as caught:
        create(messages=[user_message("Read.", page("136.94"))], response_format=form)
    assert caught.value.code == "context_length_exceeded"


def test_fields_that_nobody_waits_for_are_not_looked_for(parts, page):
    layers = 0

    def slowly(*_: Any) -> None:
        nonlocal layers
        layers += 1
        time.sleep(0.3)

    messages: Any = [user_message("Read.", page("Novak Deli", "12 cups", "Total 136.94"))]
    keys: Any = {"model": "tiny", "messages": messages, "response_format": schema(**ONE)}
    with serving(*parts, Limits(timeout=1)) as server, server.client() as client:
        handle = parts[0].model.language_model.layers[0].register_forward_hook(slowly)
        with pytest.raises(openai.InternalServerError, match="no answer within 1 s"):
            client.chat.completions.create(**keys)
        server.wait_for("alignvlm_running", 0)
        time.sleep(0.4)
        seen = layers
        time.sleep(0.8)
        handle.remove()
        assert layers == seen > 1
        assert client.chat.completions.create(**keys).choices[0].finish_reason == "stop"
