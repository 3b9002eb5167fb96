"""One request's clock, its body, and whether its client is still there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .limits import RequestError

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
    body, started, chunks = bytearray(), time.monotonic(), chunks_of(receive)
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


async def chunks_of(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it comes.

    Raises:
        ClientGoneError: the client left.
    """
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
        async for _ in chunks_of(receive):
            pass

    with contextlib.suppress(asyncio.TimeoutError, ClientGoneError):
        await asyncio.wait_for(drain(), DRAIN_SECONDS)
    response = JSONResponse(error.body(), error.status, error.headers)
    await response(scope, receive, send)
