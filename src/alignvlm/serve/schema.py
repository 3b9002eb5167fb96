"""The chat request: OpenAI's fields that this server honours, and no others.

A field that would change the answer and cannot be honoured is refused rather than ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from .limits import Limits, RequestError
from .messages import MOST, FilePart, ImagePart, Message, RequestPart
from .response_format import ResponseFormat, TextFormat

MOST_ANSWERS = 8
"""To one request; they are written one after the other."""
NO_TOOLS = 'this server calls no tools: leave this out, or send tool_choice "none"'
UNSUPPORTED = {
    "tools": NO_TOOLS,
    "tool_choice": NO_TOOLS,
    "functions": NO_TOOLS,
    "function_call": NO_TOOLS,
    "tool_calls": "this server calls no tools: send the conversation without their calls",
    "logit_bias": "this server prefers no tokens: leave it out or send {}",
    "modalities": 'this server answers in text: leave it out or send ["text"]',
    "presence_penalty": "this server has frequency_penalty only: leave it out or send 0",
    "reasoning_effort": 'this model does not reason: leave it out or send "none"',
    "file_id": "this server keeps no files: send the file itself in base64 as file_data",
}
"""What a client can do about fields that this server refuses."""


class StreamOptions(RequestPart):
    """``include_usage``: a last event with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(RequestPart):
    """Body of ``POST /v1/chat/completions``.

    Greedy unless ``temperature`` is above 0 or ``top_p`` below 1. ``frequency_penalty`` f becomes
    transformers' ``repetition_penalty`` 1 + f. The fields of type ``Any`` change nothing.
    """

    unset: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "presence_penalty": (0,),
        "reasoning_effort": ("none",),
    }

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float = Field(0, ge=0, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(max_length=4),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = []
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat = TextFormat()
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None

    @model_validator(mode="before")
    @classmethod
    def _no_tools(cls, data: Any) -> Any:
        """Tools that may not be called change nothing."""
        if not isinstance(data, dict):
            return data
        unused = {"tools": "tool_choice", "functions": "function_call"}
        dropped = {tools for tools, choice in unused.items() if data.get(choice) == "none"}
        return {key: value for key, value in data.items() if key not in dropped}

    @property
    def sampled(self) -> bool:
        """Whether chance has a part in the answer."""
        narrowed = self.top_p is not None and self.top_p < 1
        return bool(self.temperature) or (self.temperature is None and narrowed)

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
    if request.n > 1 and not request.sampled:
        raise RequestError(
            f"n is {request.n}, but without temperature all answers are the same: send temperature "
            "above 0, or leave n out",
            param="n",
        )
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
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
        unknown = "this server does not know or support this field: leave it out"
        why = UNSUPPORTED.get(str(first["loc"][-1]), unknown)
        message = f"{where[:200]}: {why}"
        return RequestError(message, code="unsupported_parameter", param=where[:200])
    return RequestError(f"{where or 'body'}: {first['msg']}", param=where or None)
