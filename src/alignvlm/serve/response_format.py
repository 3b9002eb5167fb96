"""The form that a request's answer shall have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .messages import RequestPart


class TextFormat(RequestPart):
    """Free text."""

    type: Literal["text"] = "text"


class JsonObjectFormat(RequestPart):
    """A JSON object: that which the last message shows, or one with the key ``answer``."""

    type: Literal["json_object"]


class JsonSchema(RequestPart):
    """A schema with its name; ``strict``: rather no answer than one that breaks it."""

    name: str = ""
    description: Any = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class JsonSchemaFormat(RequestPart):
    """A JSON object of a schema's fields."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"~{kind}" if kind in ("text", "json_object", "json_schema") else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("~text")]
    | Annotated[JsonObjectFormat, Tag("~json_object")]
    | Annotated[JsonSchemaFormat, Tag("~json_schema")],
    Discriminator(
        _tag,
        custom_error_type="format_type",
        custom_error_message="type must be text, json_object or json_schema",
    ),
]
