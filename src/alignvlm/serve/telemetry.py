"""What the server counts, for Prometheus."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import WaitingLine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, line: WaitingLine) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        seconds = partial(Histogram, registry=self.registry, buckets=SECONDS)
        gauge = partial(Gauge, registry=self.registry)
        self.requests = counter(
            "alignvlm_requests", "Requests, by path and status", ["path", "code"]
        )
        self.seconds = seconds(
            "alignvlm_request_seconds",
            "From a request's arrival to its last byte, by path",
            ["path"],
        )
        self.first_token = seconds(
            "alignvlm_first_token_seconds",
            "From a chat request's arrival to its first text, waiting included",
        )
        self.prompt_tokens = counter(
            "alignvlm_prompt_tokens", "Prompt tokens as the language model got them"
        )
        self.completion_tokens = counter("alignvlm_completion_tokens", "Generated tokens")
        self.stream_errors = counter(
            "alignvlm_stream_errors",
            "Streams that ended in an error after their 200, by code",
            ["code"],
        )
        self.abandoned = counter("alignvlm_abandoned", "Requests whose client left early")
        waiting = gauge("alignvlm_queue_waiting", "Requests in the queue")
        waiting.set_function(lambda: line.waiting)
        running = gauge("alignvlm_running", "Requests being answered")
        running.set_function(lambda: line.running)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware: counts and times every request; ``paths`` are named, others are "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        status = "none"  # the client left before there was an answer
        start = time.monotonic()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - start)
