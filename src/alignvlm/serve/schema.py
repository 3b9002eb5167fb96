"""The chat request: OpenAI's fields that this server honours, and no others.

A field that would change the answer and cannot be honoured is refused rather than ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from .limits import Limits, RequestError

MOST = 1000
"""Messages of a request, and parts of a message: a million small ones would take gigabytes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """Clients send fields that they leave unset as null."""
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """A picture as ``data:image/png;base64,...``; ``detail`` changes nothing."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class FileData(_Strict):
    """A PDF as ``data:application/pdf;base64,...``."""

    file_data: str
    filename: str | None = None


class FilePart(_Strict):
    """A PDF in a message: all its pages."""

    type: Literal["file"]
    file: FileData


def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return f"~{kind}" if kind in ("text", "image_url", "file") else None


# tags start with ~ so that they can be left out where a place is named
Part = Annotated[
    Annotated[TextPart, Tag("~text")]
    | Annotated[ImagePart, Tag("~image_url")]
    | Annotated[FilePart, Tag("~file")],
    Discriminator(
        _part_tag,
        custom_error_type="part_type",
        custom_error_message="type must be text, image_url or file",
    ),
]
Content = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[Part], Field(max_length=MOST), Tag("~parts")],
    Discriminator(lambda value: "~string" if isinstance(value, str) else "~parts"),
]


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | FilePart]:
        """The content, as parts also where it is one string."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


class StreamOptions(_Strict):
    """``include_usage``: a last event with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Strict):
    """Text is the only one."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """Body of ``POST /v1/chat/completions``.

    Greedy unless ``temperature`` is above 0 or ``top_p`` below 1. ``frequency_penalty`` f becomes
    transformers' ``repetition_penalty`` 1 + f. ``user``, ``metadata``, ``store`` and
    ``service_tier`` are taken and change nothing.
    """

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float = Field(0, ge=0, le=2)
    presence_penalty: float = Field(0, ge=0, le=0)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(max_length=4),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = []
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def documents(self) -> list[tuple[str, str]]:
        """Where each picture or PDF stands in the request, and its address."""
        found = []
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.parts):
                where = f"messages.{i}.content.{j}"
                if isinstance(part, ImagePart):
                    found.append((where, part.image_url.url))
                elif isinstance(part, FilePart):
                    found.append((where, part.file.file_data))
        return found


def parse_request(body: bytes, limits: Limits, served: str) -> ChatRequest:
    """The request in a body.

    Raises:
        RequestError: no JSON, a field that is wrong or unknown, another model than ``served``, or
            more pictures or tokens than ``limits`` allow.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    if request.model != served:
        raise RequestError(
            f"this server serves {served!r}, not {request.model[:100]!r}",
            status=404,
            code="model_not_found",
            param="model",
        )
    if (count := len(request.documents)) > limits.max_images:
        raise too_many_images(count, limits)
    for name in ("max_completion_tokens", "max_tokens"):
        wanted = getattr(request, name)
        if wanted is not None and wanted > limits.max_new_tokens:
            raise RequestError(
                f"{name} is {wanted}, more than this server's limit of {limits.max_new_tokens}",
                code="too_many_tokens",
                param=name,
            )
    return request


def too_many_images(count: int, limits: Limits) -> RequestError:
    """Pictures and PDF pages together."""
    return RequestError(
        f"the request has {count} images and pages, more than this server's limit of "
        f"{limits.max_images}",
        code="too_many_images",
        param="messages",
    )


def _refusal(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {first['msg']}", code="invalid_json")
    where = ".".join(str(key) for key in first["loc"] if not str(key).startswith("~"))
    if first["type"] == "extra_forbidden":
        message = f"{where[:200]}: this server does not know or support this field"
        return RequestError(message, code="unsupported_parameter", param=where[:200])
    return RequestError(f"{where or 'body'}: {first['msg']}", param=where or None)
