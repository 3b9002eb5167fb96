"""Answers in JSON: a flat schema's properties, each answered by words of the pages."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any

from ..errors import ConfigError
from ..inference.extract import Extraction, FieldValue, Spent
from ..inference.field_schema import QUESTION, FieldQuestion, field_questions, may_be_null
from ..inference.values import Kind
from .limits import RequestError
from .response_format import JsonSchemaFormat
from .schema import ChatRequest

MOST_FIELDS = 64
"""Properties of a schema: each is a question of its own."""


@dataclass(frozen=True)
class WantedFields:
    """The fields that a request asks for.

    Attributes:
        questions: one for each.
        needed: those that must have a value, or there is no answer.
    """

    questions: list[FieldQuestion]
    needed: frozenset[str] = frozenset()

    def refusal(self, found: Extraction) -> str | None:
        """Why there is no answer that the schema allows, if there is none."""
        for name in (one.name for one in self.questions):
            own = found.values[name]
            if name in self.needed and own.value is None:
                why = _note(own) or "it is not on these pages"
                return (
                    f"no value for {name!r}, which the schema requires: {why}. Let the schema "
                    'allow null for it, as in "type": ["string", "null"]'
                )
        return None

    def content(self, found: Extraction) -> str:
        """The values as JSON, null where there is none."""
        values = {one.name: _json(found.values[one.name].value) for one in self.questions}
        return json.dumps(values, ensure_ascii=False)


@dataclass(frozen=True)
class Found:
    """What the pages say, and the tokens it took."""

    extraction: Extraction
    spent: Spent

    @property
    def details(self) -> dict[str, Any]:
        """Of each field its words, where they stand, and how sure they are."""
        return {
            name: {
                "text": own.text,
                "page": own.page,
                "boxes": [[round(edge, 1) for edge in box] for box in own.boxes],
                "confidence": round(own.confidence, 4),
                "note": _note(own),
            }
            for name, own in self.extraction.values.items()
        }


def _note(own: FieldValue) -> str | None:
    """Why there is no value; without the options of the command line, which it names."""
    return own.note and own.note.split(" (--")[0]


def _json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if isinstance(value, date) else value


def wanted_fields(request: ChatRequest) -> WantedFields | None:
    """The fields of ``response_format``; ``None``: the answer is what the model writes.

    Raises:
        RequestError: a schema that is not flat, no page to find fields on, or other fields of the
            request that would change how an answer is written.
    """
    form, text = request.response_format, request.messages[-1].text
    if isinstance(form, JsonSchemaFormat):
        wanted = _of_schema(form, text)
    elif form.type == "json_object" and (shown := _shown_object(text)):
        wanted = WantedFields(_of_object(shown))
    else:
        if form.type == "json_object" and request.logprobs:
            raise _refused("the tokens of JSON have no logprobs: leave logprobs out")
        return None
    if len(wanted.questions) > MOST_FIELDS:
        raise _refused(f"the schema has more than {MOST_FIELDS} properties: send several requests")
    if not request.documents:
        raise _refused(
            "its values are words of pages, and there are none: send a picture or PDF, or leave "
            "response_format out"
        )
    _check_greedy(request)
    return wanted


def _refused(message: str) -> RequestError:
    where = "response_format"
    return RequestError(f"{where}: {message}", code="unsupported_schema", param=where)


def _of_schema(form: JsonSchemaFormat, text: str) -> WantedFields:
    """One property without a description is asked in the message's own words."""
    schema = form.json_schema.schema_
    try:
        questions = field_questions(schema)
    except ConfigError as error:
        raise _refused(
            f"{error}. Supported is one flat object of properties of type string (format date or "
            "none), number and integer"
        ) from None
    if (
        len(questions) == 1
        and text
        and not schema["properties"][questions[0].name].get("description")
    ):
        questions = [replace(questions[0], question=text)]
    must = {one.name for one in questions if not may_be_null(schema, one.name)}
    return WantedFields(questions, frozenset(must) if form.json_schema.strict else frozenset())


def _shown_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, as messages show what they want: ``{"total": 0}``."""
    decoder, start = json.JSONDecoder(), text.find("{")
    for _ in range(10):  # a text of a million brackets is no example
        if start < 0:
            return None
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
        else:
            return found
    return None


def _of_object(shown: dict[str, Any]) -> list[FieldQuestion]:
    """A field's type is that of its value."""
    questions = []
    for name, value in shown.items():
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise _refused(
                f"the message's JSON object has {name!r}: {json.dumps(value)[:40]}; supported are "
                "strings and numbers"
            )
        kind: Kind = "text" if isinstance(value, str) else "number"
        question = QUESTION.format(name.replace("_", " "))
        questions.append(FieldQuestion(name, question, kind))
    return questions


def _check_greedy(request: ChatRequest) -> None:
    """What chooses other tokens cannot choose other words of the page."""
    given = {
        "temperature": bool(request.temperature),
        "top_p": request.top_p is not None and request.top_p < 1,
        "frequency_penalty": bool(request.frequency_penalty),
        "stop": bool(request.stop),
        "n": request.n > 1,
        "logprobs": request.logprobs,
    }
    if name := next((name for name, is_given in given.items() if is_given), None):
        raise RequestError(
            f"{name}: with response_format the values are the surest words of the pages: leave "
            f"{name} out",
            code="unsupported_parameter",
            param=name,
        )
