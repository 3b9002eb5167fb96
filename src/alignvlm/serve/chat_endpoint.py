"""``POST /v1/chat/completions``: one request from its first byte to its last token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from ..errors import AlignVLMError
from .answering import Answering, FieldsAnswer, GeneratedAnswer, JsonAnswer, internal_error
from .attachments import Address, Attachment, fetch_documents, read_documents
from .call import DRAIN_SECONDS, Call, ClientGoneError, read_body, refuse
from .generator import Generator
from .limits import Bodies, Limits, RequestError, WaitingLine
from .page_fields import WantedFields, wanted_fields
from .replies import ChatReply
from .schema import ChatRequest, parse_request
from .telemetry import Metrics

log = logging.getLogger("alignvlm.serve")


class ChatEndpoint:
    """The endpoint, as an ASGI application; ``name``: of the model, as clients ask for it."""

    def __init__(
        self, generator: Generator, name: str, limits: Limits, line: WaitingLine, metrics: Metrics
    ) -> None:
        self.generator, self.name, self.limits = generator, name, limits
        self.line, self.metrics = line, metrics
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
        request, wanted, found = await call.within(asyncio.to_thread(self._read, body))
        used = len(body)
        del body
        documents = await call.within(fetch_documents(found, self.limits, used))
        del found
        await call.within(self.line.turn.acquire())
        self.line.began()
        answer = None
        try:
            answer = await self._answer(call, request, wanted, documents)
            if request.stream:
                await self._stream(call, answer, request, send)
            else:
                await self._whole(call, answer, scope, send)
        finally:
            if answer is not None:
                answer.close()
            self.line.ended()

    def _read(
        self, body: bytes
    ) -> tuple[ChatRequest, WantedFields | None, list[Attachment | Address]]:
        request = parse_request(body, self.limits, self.name)
        return request, wanted_fields(request), read_documents(request, self.limits)

    async def _answer(
        self,
        call: Call,
        request: ChatRequest,
        wanted: WantedFields | None,
        documents: list[Attachment],
    ) -> Answering:
        model, given = self.generator, (documents, call.abandoned)
        try:
            if wanted is not None:
                found = await call.within(model.in_thread(model.extract, request, wanted, *given))
                return FieldsAnswer(found, wanted, call, self.metrics)
            prompt = await call.within(model.in_thread(model.prepare, request, *given))
        except (RequestError, ClientGoneError):
            raise
        except AlignVLMError as error:
            raise RequestError(str(error)) from None
        except Exception as error:
            log.exception("a prompt could not be prepared")
            raise internal_error() from error
        kind = JsonAnswer if request.response_format.type == "json_object" else GeneratedAnswer
        return kind(model, call, self.metrics, request, prompt)

    async def _whole(self, call: Call, answer: Answering, scope: Scope, send: Send) -> None:
        """Send the answer when it is complete."""
        pieces = [piece async for piece in answer.pieces()]
        response = JSONResponse(ChatReply(self.name).whole(pieces, answer.usage))
        try:
            await call.within(response(scope, _nothing_more, send))
        except RequestError:  # too late for another status
            raise ClientGoneError from None

    async def _stream(
        self, call: Call, answer: Answering, request: ChatRequest, send: Send
    ) -> None:
        """Send the answer as server-sent events, an error as the last of them."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await call.within(send(start))
        try:
            async for event in self._events(answer, request):
                await call.within(send(_part(event)))
        except RequestError as error:
            self.metrics.stream_errors.labels(error.code).inc()
            last = send(_part(f"data: {json.dumps(error.body())}\n\n"))
            with contextlib.suppress(asyncio.TimeoutError):  # a client that reads nothing
                await asyncio.wait_for(last, DRAIN_SECONDS)
        await send({"type": "http.response.body", "body": b""})

    async def _events(self, answer: Answering, request: ChatRequest) -> AsyncIterator[str]:
        reply, begun = ChatReply(self.name), 0
        yield reply.begin(begun)
        async for piece in answer.pieces():
            if piece.index > begun:
                begun = piece.index
                yield reply.begin(begun)
            yield reply.event(piece)
        if request.stream_options.include_usage:
            yield reply.last(answer.usage)
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
