"""``alignvlm demo``: load a model and serve its web page.

Everything the page shows comes from this process: no font, script or statistic is fetched from, or
sent to, anywhere else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from ..errors import AlignVLMError
from ..inference.ask import load_model
from ..inference.confidence import calibration_of
from ..weights.resolve import resolve
from .desk import Desk
from .web_app import WebApp

PORTS = range(7860, 7960)
"""Where no port is named, the first free one of these is taken."""
LOCAL = ("127.0.0.1", "localhost", "[::1]")
SHUTDOWN_SECONDS = 3


class _QuietServer(uvicorn.Server):
    """Leaves signals to :func:`_ends_when_told`: uvicorn raises them again when it has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _ends_when_told(server: uvicorn.Server) -> Iterator[None]:
    """Ctrl-C and what an operating system sends end the server, and the command in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, server.handle_exit) for one in told}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def run(
    reference: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_pages: int = 8,
    open_browser: bool = False,
    report: Callable[[str, str], None] = lambda url, text: print(text),
) -> None:
    """Load a model and serve the page until Ctrl-C.

    Args:
        reference: folder or hub id.
        host: address to listen on.
        port: ``None``: the first free one from 7860 on.
        max_pages: of a document; the rest is left out.
        open_browser: open the page in the machine's browser.
        report: told the page's address, alone and in a sentence.

    Raises:
        WeightsError: no such model.
        AlignVLMError: the address cannot be used.
    """
    with _listen(host, port) as listener:
        model, processor = load_model(reference)
        desk = Desk(model, processor, calibration_of(resolve(reference)))
        page = WebApp(desk, Path(reference).name, max_pages)
        shown = f"[{host}]" if ":" in host else host
        hosts = {*LOCAL, shown.lower()} if _is_loopback(host) else None
        config = uvicorn.Config(
            page.build(hosts),
            log_level="warning",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            ws="none",
            lifespan="off",
            server_header=False,
        )
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        server = _QuietServer(config)
        try:
            with _ends_when_told(server):
                report(url, f"the page is at {url} (Ctrl-C ends it)")
                if open_browser:
                    webbrowser.open(url)
                server.run(sockets=[listener])
        finally:
            page.turns.close(SHUTDOWN_SECONDS)


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket.

    Raises:
        AlignVLMError: the address is taken or not this machine's.
    """
    reason: object = "none is free"
    for tried in PORTS if port is None else (port,):
        try:
            family = socket.getaddrinfo(host or None, tried, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, tried), family=family, backlog=128)
        except OSError as error:
            reason = error.strerror or error
    where = port or f"{PORTS[0]}-{PORTS[-1]}"
    raise AlignVLMError(f"cannot listen on {host}, port {where}: {reason}")


def _is_loopback(host: str) -> bool:
    found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
    return bool(host) and all(
        ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_loopback for entry in found
    )
