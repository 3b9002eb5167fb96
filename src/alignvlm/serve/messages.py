"""The messages of a chat request: who says what, with pictures and PDFs among the text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

MOST = 1000
"""Messages of a request, and parts of a message: a million small ones would take gigabytes."""


class RequestPart(BaseModel):
    """Part of a request: unknown fields are errors, unless they say nothing.

    Attributes:
        unset: values with which a field changes nothing, as if it were not there; null is one for
            every field, because clients send what they leave unset as null.
    """

    model_config = ConfigDict(extra="forbid")
    unset: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_unset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None and value not in cls.unset.get(key, ())
        }


class TextPart(RequestPart):
    """Text of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(RequestPart):
    """What an assistant said instead of an answer, when a conversation is sent again."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(RequestPart):
    """A picture as ``data:image/png;base64,...``; ``detail`` changes nothing."""

    url: str
    detail: Any = None


class ImagePart(RequestPart):
    """A picture in a message; its address may stand alone, without an object around it."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl,
        BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value),
    ]


def _as_data_url(value: Any) -> Any:
    """OpenAI's own examples send the base64 alone; it has no colon."""
    bare = isinstance(value, str) and ":" not in value[:64]
    return f"data:;base64,{value}" if bare else value


class FileData(RequestPart):
    """A PDF as ``data:application/pdf;base64,...``, or its base64 alone."""

    file_data: Annotated[str, BeforeValidator(_as_data_url)]
    filename: str | None = None


class FilePart(RequestPart):
    """A PDF in a message: all its pages."""

    type: Literal["file"]
    file: FileData


PARTS = ("text", "image_url", "file", "refusal")


def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return f"~{kind}" if kind in PARTS else None


# tags start with ~ so that they can be left out where a place is named
Part = Annotated[
    Annotated[TextPart, Tag("~text")]
    | Annotated[ImagePart, Tag("~image_url")]
    | Annotated[FilePart, Tag("~file")]
    | Annotated[RefusalPart, Tag("~refusal")],
    Discriminator(
        _part_tag,
        custom_error_type="part_type",
        custom_error_message="type must be text, image_url or file; a part of the Responses API "
        "(input_text, input_image, input_file) is written that way here",
    ),
]
Content = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[Part], Field(max_length=MOST), Tag("~parts")],
    Discriminator(lambda value: "~string" if isinstance(value, str) else "~parts"),
]


class Message(RequestPart):
    """One message of the conversation.

    An assistant's may come as this server sent it: without content, with its refusal, with empty
    lists beside it and with ``fields``, which say where the content stood on the pages.
    """

    unset: ClassVar[dict[str, tuple[Any, ...]]] = {"annotations": ([],), "tool_calls": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: str | None = None
    fields_: Any = Field(None, alias="fields")

    @model_validator(mode="before")
    @classmethod
    def _empty_answer(cls, data: Any) -> Any:
        """Only an assistant's message may have no content."""
        if isinstance(data, dict) and data.get("role") == "assistant" and not data.get("content"):
            return {**data, "content": data.get("refusal") or ""}
        return data

    @property
    def parts(self) -> list[TextPart | ImagePart | FilePart]:
        """The content, as parts also where it is one string."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return [
            TextPart(type="text", text=part.refusal) if isinstance(part, RefusalPart) else part
            for part in self.content
        ]

    @property
    def text(self) -> str:
        """Its text alone, a line for each part."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart)).strip()
