"""``--allow-urls``: what is fetched for a request, and what ends it."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.serve.server_thread import CHAT, Running, data_url, serving

from alignvlm.serve import attachments as pages
from alignvlm.serve.limits import Limits

LIMITS = Limits(allow_urls=True, max_body=300_000, timeout=60)


def image_parts(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": parts}]


@contextmanager
def listening(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Addresses that begin so are answered by ``handler`` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Files(SimpleHTTPRequestHandler):
    """A folder's files."""

    def log_message(self, *args: Any) -> None:
        pass


class Dripping(Files):
    """A byte of a file, or of a header at ``/header``, every now and then, until nobody reads."""

    left: threading.Event
    begun: threading.Event

    def do_GET(self) -> None:
        self.begun.set()
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (self.path != "/header") + b"x")
        try:
            for _ in range(400):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            self.left.set()


@pytest.fixture(scope="module")
def server(make_model: Any, make_processor: Any) -> Iterator[Running]:
    model = make_model()
    with serving(model, make_processor(model.config), LIMITS) as running:
        yield running


@pytest.fixture
def create(server: Running) -> Iterator[Callable[..., Any]]:
    with server.client() as client:
        yield partial(client.chat.completions.create, model="tiny", max_tokens=8)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    with listening(partial(Files, directory=str(tmp_path))) as address:
        yield address


@pytest.fixture
def dripping() -> Iterator[tuple[str, type[Dripping]]]:
    events = {"left": threading.Event(), "begun": threading.Event()}
    handler = type("Handler", (Dripping,), events)
    with listening(handler) as address:
        yield address, handler


def test_urls_are_fetched_when_allowed(create, files, images, tmp_path):
    images[0].save(tmp_path / "page.png")
    fetched: Any = create(messages=image_parts(files + "page.png"))
    inline: Any = create(messages=image_parts(data_url(images[0])))
    assert fetched.choices == inline.choices
    assert fetched.usage == inline.usage
    mixed: Any = create(messages=image_parts(data_url(images[0]), files + "page.png"))
    both: Any = create(messages=image_parts(*[data_url(images[0])] * 2))
    assert mixed.choices == both.choices
    for url, message in (
        (files + "none.png", "404"),
        ("http://[::bad/a.png", "cannot be fetched"),
        ("http://127.0.0.1:9/a.png", "cannot be fetched"),
        ("file:///etc/hostname", "as a data URL"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            create(messages=image_parts(url))


def test_files_and_body_share_one_limit(create, files, tmp_path):
    (tmp_path / "big.png").write_bytes(b"x" * (LIMITS.max_body + 1))
    (tmp_path / "half.png").write_bytes(b"x" * (LIMITS.max_body // 2))
    inline = "data:image/png;base64," + base64.b64encode(b"x" * 150_000).decode()
    half = files + "half.png"
    for urls in ((files + "big.png",), (half, half), (inline, half)):
        with pytest.raises(openai.APIStatusError, match=r"larger than .* 300000 bytes") as caught:
            create(messages=image_parts(*urls))
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    with pytest.raises(openai.BadRequestError, match="not an image"):  # one alone is fetched
        create(messages=image_parts(half))


@pytest.mark.parametrize("path", ["body", "header"])
def test_a_file_that_drips_is_given_up(create, dripping, path, monkeypatch):
    monkeypatch.setattr(pages, "FETCH_SECONDS", 0.5)
    address, handler = dripping
    began = time.monotonic()
    with pytest.raises(openai.BadRequestError, match=r"it takes longer than 0\.5 s") as caught:
        create(messages=image_parts(address + path))
    assert caught.value.code == "url_not_fetched"
    assert time.monotonic() - began < 5
    assert handler.left.wait(5)


def test_nothing_is_fetched_for_a_client_that_left(server, dripping):
    address, handler = dripping
    body = json.dumps({"model": "tiny", "messages": image_parts(address + "body")}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        assert handler.begun.wait(10)
        assert not handler.left.is_set()
    assert handler.left.wait(5)
