"""The server: routes, API key, and starting it."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ConfigError
from ..inference.confidence import Calibration
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from .call import refuse
from .chat_endpoint import ChatEndpoint
from .generator import Generator
from .limits import Limits, RequestError, WaitingLine
from .telemetry import Measured, Metrics

CHAT = "/v1/chat/completions"
LOCAL = ("127.0.0.1", "[::1]", "localhost")
PATHS = {CHAT, "/v1/models", "/health", "/metrics"}
SHUTDOWN_SECONDS = 10
"""What is being answered when the server is told to stop has this long to end."""


class HostsAllowed:
    """ASGI middleware: requests under other names are refused.

    A web page may have its own name lead to 127.0.0.1 once it is loaded; its browser then takes the
    server for the page's own and lets it read the answers. Starlette's middleware answers in plain
    text, and its older versions know no IPv6 addresses.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            if re.sub(r":\d*$", "", given) not in self.hosts:
                error = RequestError(
                    f"this server answers as {' or '.join(sorted(self.hosts))} only; set an API "
                    "key to use another name",
                    status=403,
                    code="host_not_allowed",
                )
                return await refuse(error, scope, receive, send)
        await self.app(scope, receive, send)


class KeyRequired:
    """ASGI middleware: everything but ``/health`` needs ``Authorization: Bearer KEY``."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                error = RequestError(
                    "wrong or missing API key; send it as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                return await refuse(error, scope, receive, send)
        await self.app(scope, receive, send)


def create_app(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    *,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
    calibration: Calibration | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model, processor: as :func:`alignvlm.inference.ask.load_model` gives them.
        name: of the model, as clients ask for it.
        limits: default: those of :class:`Limits`.
        api_key: None: nobody is asked for one.
        hosts: names of the server, as requests' ``Host`` has them, IPv6 in brackets; default: any.
        calibration: makes probabilities of the scores of fields.

    Raises:
        ConfigError: an API key that no client could send.
    """
    if api_key is not None and not (
        api_key.isascii() and api_key.isprintable() and api_key.strip()
    ):
        raise ConfigError("the API key must be printable ASCII characters, and not empty")
    limits = limits or Limits()
    line = WaitingLine(limits.queue)
    metrics = Metrics(line)
    generator = Generator(model, processor, limits, calibration)
    chat = ChatEndpoint(generator, name, limits, line, metrics)
    about = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "alignvlm"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [about]})

    async def one_model(request: Request) -> Response:
        if request.path_params["model"] != name:
            raise HTTPException(404, f"this server serves {name!r}")
        return JSONResponse(about)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": name})

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    # no schema and no pages of documentation: they would load scripts from elsewhere
    app = FastAPI(openapi_url=None, exception_handlers={HTTPException: _http_error})
    app.state.generator = generator
    app.router.routes += [
        Route(CHAT, chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", one_model),
        Route("/health", health),
        Route("/metrics", measured),
    ]
    if api_key is not None:
        app.add_middleware(KeyRequired, key=api_key)
    if hosts is not None:
        app.add_middleware(HostsAllowed, hosts=hosts)
    app.add_middleware(Measured, metrics=metrics, paths=PATHS)
    return app


async def _http_error(request: Request, error: Any) -> Response:
    status = HTTPStatus(error.status_code)
    code, detail = status.phrase.lower().replace(" ", "_"), error.detail
    if detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is no {request.url.path[:100]} here: ask with POST {CHAT}; GET /v1/models "
        detail += "says which model answers"
    refusal = RequestError(detail, status=error.status_code, code=code)
    return JSONResponse(refusal.body(), error.status_code, error.headers)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``.

    Raises:
        ConfigError: no such host.
    """
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}") from None
    return all(ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_loopback for entry in found)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from None


def model_name(reference: str) -> str:
    """What clients call a model: its folder's name, or its hub id."""
    folder = Path(reference)
    return folder.resolve().name if folder.is_dir() else reference


class _Server(uvicorn.Server):
    """Ends its event loop after what the inference thread was doing."""

    def __init__(self, config: uvicorn.Config, generator: Generator) -> None:
        super().__init__(config)
        self.generator = generator

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for task in self.server_state.tasks:  # a second Ctrl-C waits for none of them
            task.cancel()
        await self.generator.idle(SHUTDOWN_SECONDS)


def run(
    reference: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
    allow_no_key: bool = False,
    report: Callable[[str, str], None] = lambda url, text: print(text),
) -> None:
    """Load a model and serve it until interrupted.

    Without an API key, and unless ``allow_no_key`` says that others may ask, only requests to this
    machine's own names are answered. ``report`` is told the address, and a sentence for people.

    Raises:
        ConfigError: an address that others can reach without an API key, or one that is taken.
        WeightsError: no such model, or one that cannot be loaded.
    """
    if api_key is None and not allow_no_key and not is_loopback(host):
        raise ConfigError(
            f"{host or 'an empty host'} can be reached from other machines: set an API key "
            "(ALIGNVLM_API_KEY or --api-key), or say --allow-no-key"
        )
    with listen(host, port) as listener:
        from ..inference.ask import load_model
        from ..inference.confidence import calibration_of
        from ..weights.resolve import resolve

        name = name or model_name(reference)
        model, processor = load_model(reference)
        shown = f"[{host}]" if ":" in host else host
        keys: dict[str, Any] = {"limits": limits, "api_key": api_key}
        keys["calibration"] = calibration_of(resolve(reference))
        if api_key is None and not allow_no_key:
            keys["hosts"] = {*LOCAL, shown}
        app = create_app(model, processor, name=name, **keys)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            ws="none",
            lifespan="off",
            server_header=False,
        )
        bound_port = listener.getsockname()[1]
        url = f"http://{shown}:{bound_port}/v1"
        report(url, f"serving {name} at {url} (Ctrl-C to stop)")
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, app.state.generator).run(sockets=[listener])
