"""What to look for in documents: names, a JSON Schema or a pydantic model, as questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from ..errors import ConfigError, nearest
from .values import Kind

QUESTION = "What is the {}?"
"""How a field without a description is asked for."""
KINDS: tuple[Kind, ...] = ("text", "number", "integer", "date")
_BY_NAME: dict[str, Kind] = {
    "date": "date", "total": "number", "subtotal": "number", "amount": "number",
    "price": "number", "tax": "number",
}  # fmt: skip
_AT_TOP = {"$schema", "$id", "title", "description", "type", "properties", "required",
           "additionalProperties"}  # fmt: skip
_AT_FIELD = {"title", "description", "type", "format", "default", "anyOf", "examples"}


@dataclass(frozen=True)
class FieldQuestion:
    """A field and how it is asked for."""

    name: str
    question: str
    kind: Kind = "text"


Schema = Sequence[str] | Sequence[FieldQuestion] | Mapping[str, Any] | type[BaseModel]
"""Names, perhaps ``name:kind``; questions; a JSON Schema; or a pydantic model's class."""


def field_questions(schema: Schema) -> list[FieldQuestion]:
    """The fields of a schema.

    A name alone is a date or a number if its last word says so (``invoice_date``, ``total``);
    ``name:kind`` says it outright, and a JSON Schema by ``type`` and ``format``.

    Raises:
        ConfigError: no fields, one twice, or what extraction cannot give; names the field.
    """
    if isinstance(schema, type):
        schema = schema.model_json_schema()
    if isinstance(schema, Mapping):
        made = _of_schema(schema)
    else:
        made = [one if isinstance(one, FieldQuestion) else _of_name(one) for one in schema]
    names = [one.name for one in made]
    if not names:
        raise ConfigError("there are no fields to extract")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"field {name!r} is there twice")
    return made


def _of_name(text: str) -> FieldQuestion:
    name, colon, kind = (part.strip() for part in text.partition(":"))
    if not name:
        raise ConfigError(f"a field without a name: {text!r}")
    words = name.replace("_", " ")
    if not colon:
        kind = _BY_NAME.get(words.split()[-1].lower(), "text")
    if kind not in KINDS:
        hint = nearest(kind, KINDS)
        raise ConfigError(f"field {name!r}: {kind!r} is none of {', '.join(KINDS)}{hint}")
    return FieldQuestion(name, QUESTION.format(words), cast(Kind, kind))


def _of_schema(schema: Mapping[str, Any]) -> list[FieldQuestion]:
    if unknown := sorted(set(schema) - _AT_TOP):
        raise ConfigError(
            f"the schema has {unknown[0]!r}{nearest(unknown[0], _AT_TOP)}: one flat object of "
            "fields can be extracted"
        )
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping):
        raise ConfigError("the schema must be of type 'object' and have 'properties'")
    return [_of_property(name, own) for name, own in properties.items()]


def _of_property(name: str, schema: Any) -> FieldQuestion:
    if not isinstance(schema, Mapping):
        raise ConfigError(f"field {name!r} must be an object with a 'type'")
    if "anyOf" in schema:  # as pydantic writes an optional field, or a decimal
        some = [s for s in _choices(name, schema["anyOf"]) if s.get("type") != "null"]
        some = [s for s in some if s.get("type") == "number"] or some
        schema = {**{k: v for k, v in schema.items() if k != "anyOf"}, **(some or [{}])[0]}
    kind = schema.get("type")
    if isinstance(kind, list) and len(some := [one for one in kind if one != "null"]) == 1:
        kind = some[0]
    if kind == "array":
        raise ConfigError(
            f"field {name!r} is an array: a field is answered by one place on the page, so "
            "repeated values such as table rows cannot be extracted"
        )
    if unknown := sorted(set(schema) - _AT_FIELD):
        raise ConfigError(
            f"field {name!r} has {unknown[0]!r}{nearest(unknown[0], _AT_FIELD)}, which is not "
            "checked against what a page says"
        )
    form = schema.get("format")
    kinds: dict[tuple[Any, Any], Kind] = {
        ("string", None): "text", ("string", "date"): "date", ("number", None): "number",
        ("integer", None): "integer",
    }  # fmt: skip
    if (
        not isinstance(kind, str | None)
        or not isinstance(form, str | None)
        or (kind, form) not in kinds
    ):
        shown = f"type {kind!r}" + (f" with format {form!r}" if form else "")
        raise ConfigError(
            f"field {name!r}: {shown} cannot be extracted; there are string, string with format "
            "'date', number and integer"
        )
    question = schema.get("description") or QUESTION.format(name.replace("_", " "))
    if not isinstance(question, str):
        raise ConfigError(f"field {name!r}: its description must be a string")
    return FieldQuestion(name, question, kinds[kind, form])


def _choices(name: str, choices: Any) -> list[Mapping[str, Any]]:
    if not isinstance(choices, list) or not all(isinstance(one, Mapping) for one in choices):
        raise ConfigError(f"field {name!r}: 'anyOf' must be a list of objects with a 'type'")
    return choices


def may_be_null(schema: Mapping[str, Any], name: str) -> bool:
    """Whether a JSON Schema of :func:`field_questions` lets a field be null or missing."""
    own, required = schema["properties"][name], schema.get("required")
    kinds = [own.get("type"), *(one.get("type") for one in own.get("anyOf", ()))]
    null = any(kind == "null" or (isinstance(kind, list) and "null" in kind) for kind in kinds)
    return null or not isinstance(required, list) or name not in required
