"""``POST /v1/chat/completions``: one request from its first byte to its last token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from openai.types.chat import ChatCompletionChunk
from openai.types.completion_usage import CompletionUsage, PromptTokensDetails
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from transformers.cli.serving.utils import _StreamError

from ..errors import AlignVLMError
from .attachments import Address, Attachment, fetch_documents, read_documents
from .completions import ChatPrompt, Generator, first_stop
from .limits import Bodies, Limits, RequestError, WaitingLine
from .schema import ChatRequest, parse_request
from .telemetry import Metrics

log = logging.getLogger("alignvlm.serve")
T = TypeVar("T")
DRAIN_SECONDS = 2.0
UPLOAD_SECONDS, UPLOAD_RATE = 10.0, 32 * 1024
"""A body has so long to arrive, and a second more for each so many bytes."""


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Call:
    """One request's clock, and its client: everything it awaits ends when either gives up."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds
        self.abandoned = threading.Event()
        self._gone: asyncio.Task | None = None

    def watch(self, receive: Receive) -> None:
        """Notice from now on when the client leaves; the body must have been read."""

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        self._gone = asyncio.create_task(left())

    @property
    def watching(self) -> bool:
        """Whether the body has been read."""
        return self._gone is not None

    def close(self) -> None:
        """Stop watching; what is still under way for this call is not wanted any more."""
        self.abandoned.set()
        if self._gone is not None:
            self._gone.cancel()

    async def within(self, wanted: Awaitable[T]) -> T:
        """The result of ``wanted``.

        Raises:
            RequestError: 504, time is up.
            ClientGoneError: the client left.
        """
        task = asyncio.ensure_future(wanted)
        others = {task} if self._gone is None else {task, self._gone}
        left = max(0.0, self.started + self.seconds - time.monotonic())
        try:
            await asyncio.wait(others, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            return task.result()
        task.cancel()
        if self._gone is not None and self._gone.done():
            raise ClientGoneError
        raise RequestError(
            f"no answer within {self.seconds:g} s; send fewer pages or ask for fewer tokens",
            status=504,
            code="timeout",
        )


async def read_body(
    scope: Scope, receive: Receive, limit: int, take: Callable[[int], bool]
) -> bytes | None:
    """The request's body; ``None`` where ``take`` had no room for it.

    Raises:
        RequestError: 413, more than ``limit`` bytes, declared or sent; 408, it comes too slowly.
        ClientGoneError: the client left.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"")
    too_large = RequestError(
        f"the body is larger than this server's limit of {limit} bytes",
        status=413,
        code="body_too_large",
    )
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body, started, chunks = bytearray(), time.monotonic(), _chunks(receive)
    while True:
        until = started + UPLOAD_SECONDS + len(body) / UPLOAD_RATE
        try:
            chunk = await asyncio.wait_for(anext(chunks), max(0.0, until - time.monotonic()))
        except StopAsyncIteration:
            return bytes(body)
        except TimeoutError:
            raise RequestError(
                f"the body comes too slowly: {len(body)} bytes in {until - started:.0f} s",
                status=408,
                code="upload_timeout",
            ) from None
        body += chunk
        if len(body) > limit:
            raise too_large
        if not take(len(chunk)):
            return None


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error. What the client is still sending is read and thrown away for a while,
    because many clients read no answer before they have sent everything."""

    async def drain() -> None:
        async for _ in _chunks(receive):
            pass

    with contextlib.suppress(asyncio.TimeoutError, ClientGoneError):
        await asyncio.wait_for(drain(), DRAIN_SECONDS)
    response = JSONResponse(error.body(), error.status, error.headers)
    await response(scope, receive, send)


class ChatEndpoint:
    """The endpoint, as an ASGI application.

    Args:
        generator: the model.
        name: of the model, as clients ask for it.
        limits: see :class:`Limits`.
        line: who waits.
        metrics: what is counted.
    """

    def __init__(
        self, generator: Generator, name: str, limits: Limits, line: WaitingLine, metrics: Metrics
    ) -> None:
        self.generator = generator
        self.name = name
        self.limits = limits
        self.line = line
        self.metrics = metrics
        self.bodies = Bodies((limits.queue + 1) * limits.max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(self.limits.timeout)
        try:
            with self.bodies.room() as take:
                await self._serve(call, scope, receive, send, take)
        except RequestError as error:
            # once the body has been read there is nothing left to throw away
            await refuse(error, scope, _nothing_more if call.watching else receive, send)
        except ClientGoneError:
            self.metrics.abandoned.inc()
        except asyncio.CancelledError:  # only a server that stops does that: one line of log is due
            log.error("stopped before the answer was complete")
        finally:
            call.close()

    async def _serve(
        self,
        call: Call,
        scope: Scope,
        receive: Receive,
        send: Send,
        take: Callable[[int], bool],
    ) -> None:
        _require_json(scope)
        self.line.check()
        body = await call.within(read_body(scope, receive, self.limits.max_body, take))
        if body is None:
            raise self.line.full("as many bytes as this server holds are waiting already")
        call.watch(receive)
        with self.line.place():
            await self._wait_and_answer(call, body, scope, send)

    async def _wait_and_answer(self, call: Call, body: bytes, scope: Scope, send: Send) -> None:
        request, found = await call.within(asyncio.to_thread(self._read, body))
        used = len(body)
        del body
        documents = await call.within(fetch_documents(found, self.limits, used))
        del found
        await call.within(self.line.turn.acquire())
        self.line.began()
        streamer = None
        try:
            prompt = await self._prompt(call, request, documents)
            request_id = f"chatcmpl-{uuid.uuid4().hex}"
            queue, streamer = self.generator.start(prompt, request_id)
            answer = _Answer(self, call, request, prompt, queue, request_id)
            await (answer.stream(send) if request.stream else answer.whole(scope, send))
        finally:
            if streamer is not None:
                streamer.cancel()  # no matter to one that has ended
            self.line.ended()

    def _read(self, body: bytes) -> tuple[ChatRequest, list[Attachment | Address]]:
        request = parse_request(body, self.limits, self.name)
        return request, read_documents(request, self.limits)

    async def _prompt(
        self, call: Call, request: ChatRequest, documents: list[Attachment]
    ) -> ChatPrompt:
        # shielded: the inference thread must find its future as it left it
        future = asyncio.shield(self.generator.prepare(request, documents, call.abandoned))
        try:
            return await call.within(future)
        except (RequestError, ClientGoneError):
            raise
        except AlignVLMError as error:
            raise RequestError(str(error)) from None
        except Exception as error:
            log.exception("a prompt could not be prepared")
            raise _internal() from error


class _Answer:
    """An answer under way."""

    def __init__(
        self,
        endpoint: ChatEndpoint,
        call: Call,
        request: ChatRequest,
        prompt: ChatPrompt,
        queue: asyncio.Queue,
        request_id: str,
    ) -> None:
        self.generator = endpoint.generator
        self.metrics = endpoint.metrics
        self.name = endpoint.name
        self.call = call
        self.request = request
        self.prompt = prompt
        self.queue = queue
        self.id = request_id

    async def pieces(self) -> AsyncIterator[str]:
        """The answer's text as it comes; what might begin a stop string is held back."""
        stops = self.prompt.new.stops
        hold = max(map(len, stops), default=1) - 1
        text, sent, first = "", 0, True
        while (item := await self.call.within(self.queue.get())) is not None:
            if first:
                self.metrics.first_token.observe(time.monotonic() - self.call.started)
                first = False
            if isinstance(item, _StreamError):
                log.error("generation failed: %s", item.msg)
                raise _internal()
            text += item
            end = first_stop(text, stops)
            end = len(text) - hold if end is None else end
            if end > sent:
                yield text[sent:end]
                sent = end
        # the streamer keeps bytes that are no whole character, the answer shows them
        if rest := self.prompt.new.answer()[sent:]:
            yield rest
        self.metrics.prompt_tokens.inc(self.prompt.tokens)
        self.metrics.completion_tokens.inc(len(self.prompt.new.ids))

    @property
    def usage(self) -> CompletionUsage:
        prompt, new = self.prompt.tokens, len(self.prompt.new.ids)
        details = PromptTokensDetails.model_validate(
            {
                "image_tokens": self.prompt.kept_visual_tokens,
                "visual_tokens": self.prompt.visual_tokens,
            }
        )
        return CompletionUsage(
            prompt_tokens=prompt,
            completion_tokens=new,
            total_tokens=prompt + new,
            prompt_tokens_details=details,
        )

    async def whole(self, scope: Scope, send: Send) -> None:
        """Send the answer when it is complete."""
        text = "".join([piece async for piece in self.pieces()])
        reason = self.generator.finish_reason(self.prompt)
        data = self.generator._build_completion(
            self.id, text, self.name, finish_reason=reason, usage=self.usage
        )
        response = JSONResponse(data)
        try:
            await self.call.within(response(scope, _nothing_more, send))
        except RequestError:  # too late for another status
            raise ClientGoneError from None

    async def stream(self, send: Send) -> None:
        """Send the answer as server-sent events, an error as the last of them."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await self.call.within(send(start))
        try:
            async for event in self._events():
                await self.call.within(send(_part(event)))
        except RequestError as error:
            self.metrics.stream_errors.labels(error.code).inc()
            last = send(_part(f"data: {json.dumps(error.body())}\n\n"))
            with contextlib.suppress(asyncio.TimeoutError):  # a client that reads nothing
                await asyncio.wait_for(last, DRAIN_SECONDS)
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncIterator[str]:
        chunk = self.generator._build_chunk_sse
        yield chunk(self.id, role="assistant", content="", model=self.name)
        async for piece in self.pieces():
            yield chunk(self.id, content=piece, model=self.name)
        reason = self.generator.finish_reason(self.prompt)
        yield chunk(self.id, finish_reason=reason, model=self.name)
        if self.request.stream_options.include_usage:
            last = ChatCompletionChunk(
                id=self.id,
                choices=[],
                created=int(time.time()),
                model=self.name,
                object="chat.completion.chunk",
                usage=self.usage,
            )
            yield self.generator.chunk_to_sse(last)
        yield "data: [DONE]\n\n"


def _part(event: str) -> Message:
    return {"type": "http.response.body", "body": event.encode(), "more_body": True}


async def _nothing_more() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _require_json(scope: Scope) -> None:
    """Web pages of other sites can send anything but JSON without being asked about CORS."""
    kind = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise RequestError(
            "send the request with content-type: application/json",
            status=415,
            code="not_json",
        )


def _internal() -> RequestError:
    return RequestError(
        "the model failed on this request; the server's log says why",
        status=500,
        code="internal_error",
    )
