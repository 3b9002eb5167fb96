"""A real server in a thread, for tests."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
import openai
import uvicorn
from PIL import Image

from alignvlm.serve.limits import Limits
from alignvlm.serve.server import create_app, listen

CHAT = "/v1/chat/completions"


@dataclass
class Running:
    """A server that runs; ``url`` has no slash at its end, ``http`` sends to it."""

    url: str
    http: httpx.Client

    def client(self, api_key: str = "none", **keys: Any) -> openai.OpenAI:
        """OpenAI's client, which would otherwise repeat refused requests."""
        return openai.OpenAI(
            base_url=self.url + "/v1", api_key=api_key, **{"max_retries": 0, **keys}
        )

    def metrics(self) -> dict[str, float]:
        """Name and labels, as /metrics writes them, and value."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def wait_for(self, name: str, value: float, seconds: float = 10) -> None:
        """Until a metric has a value."""
        end = time.monotonic() + seconds
        while (found := self.metrics().get(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.02)


@contextmanager
def serving(model: Any, processor: Any, limits: Limits, **keys: Any) -> Iterator[Running]:
    """The model "tiny" on a free port, until the block ends."""
    app = create_app(model, processor, name="tiny", limits=limits, **keys)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # certificates take long to load
        with httpx.Client(base_url=url, verify=False, timeout=60) as http:
            yield Running(url, http)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def data_url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def user_message(text: str, *images: Image.Image) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in images
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
