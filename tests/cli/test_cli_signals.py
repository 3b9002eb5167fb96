"""``serve`` and ``demo`` are told to end while they work: in good order, in the time promised."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cli.test_cli_serve import wait_for
from tests.serve.server_thread import CHAT, user_message

from alignvlm.demo import web_page
from alignvlm.serve import server

HERE = Path(__file__).parents[2]
SLACK = 8
"""Seconds that a busy machine may add to those that are promised."""
ENDS = [signal.SIGINT, signal.SIGTERM]
pytestmark = pytest.mark.slow
SCRIPT = """
import sys
here, layer, step, *arguments = sys.argv[1:]
sys.path.insert(0, here)
from tests.cli import test_cli_signals
test_cli_signals.slow_down(float(layer), float(step))
from alignvlm.cli.app import main
sys.argv = ["alignvlm", *arguments]
main()
"""


def slow_down(layer: float, step: float) -> None:
    """Models take so many seconds more for each layer of their page encoder, and for each token;
    their answers are as long as they may be."""
    from alignvlm.inference import ask

    load = ask.load_model

    def load_model(*given: Any, **keys: Any) -> Any:
        model, processor = load(*given, **keys)
        model.generation_config.eos_token_id = None
        model.register_forward_pre_hook(lambda *_: time.sleep(step))
        for one in model.model.vision_model.encoder.layers:
            one.register_forward_pre_hook(lambda *_: time.sleep(layer))
        return model, processor

    ask.load_model = load_model


@contextmanager
def running(*arguments: object, layer: float = 0, step: float = 0) -> Iterator[tuple[Any, str]]:
    """A command in a process of its own, and the address that it says."""
    command = [sys.executable, "-c", SCRIPT, HERE, layer, step, *arguments]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line or process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.wait()


def ended(process: Any, told: float, promised: float) -> str:
    """What is said on standard error: at most lines that the end was not waited for."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), err
    assert time.monotonic() - told < promised + SLACK
    assert "Traceback" not in err and len(err.splitlines()) <= 3, err
    return err


def request(make_image: Any, pages: int, tokens: int) -> dict[str, Any]:
    images = [make_image(28, 28, seed) for seed in range(pages)]
    keys = {"max_tokens": tokens, "stream": True, "temperature": 1.5, "seed": 0}
    return {"model": "tiny", "messages": [user_message("Who?", *images)], **keys}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("tokens", "whole"), [(1000, False), (30, True)])
def test_serve_ends_while_an_answer_is_written(tiny_model_dir, make_image, end, tokens, whole):
    """An answer that needs less than 10 s more is given whole."""
    serve = ("serve", tiny_model_dir, "--port", 0, "--name", "tiny", "--json")
    with running(*serve, step=0.1) as (process, url):
        wait_for(f"{url}/health")
        told, lines = 0.0, list[str]()
        body = request(make_image, 1, tokens)
        with httpx.stream("POST", url + CHAT, json=body, timeout=60) as response:
            try:
                for line in response.iter_lines():
                    lines.append(line)
                    if not told and '"content":' in line:
                        process.send_signal(end)
                        told = time.monotonic()
            except httpx.TransportError:  # cut off
                assert not whole
        assert told and (lines[-2:] == ["data: [DONE]", ""]) == whole
        err = ended(process, told, server.SHUTDOWN_SECONDS)
        assert bool(err) != whole


@pytest.mark.parametrize("end", ENDS)
def test_serve_ends_while_pages_are_read(tiny_model_dir, make_image, end):
    serve = ("serve", tiny_model_dir, "--port", 0, "--name", "tiny", "--json")
    with running(*serve, layer=2) as (process, url):
        wait_for(f"{url}/health")
        body, codes = request(make_image, 8, 1000), list[int]()

        def post() -> None:
            answer = httpx.post(url + CHAT, json={**body, "stream": False}, timeout=60)
            codes.append(answer.status_code)

        asking = threading.Thread(target=post)
        asking.start()
        while "alignvlm_running 1.0" not in httpx.get(f"{url}/metrics", timeout=60).text:
            time.sleep(0.05)
        process.send_signal(end)
        err = ended(process, time.monotonic(), server.SHUTDOWN_SECONDS)
        asking.join(60)
        assert codes == [500] and err


@pytest.mark.parametrize("end", ENDS)
def test_the_web_page_ends_while_pages_are_read(tiny_model_dir, make_image, end):
    with running("demo", tiny_model_dir, layer=1) as (process, url):
        file = io.BytesIO()
        first, *rest = (make_image(28, 28, seed) for seed in range(8))
        first.save(file, "TIFF", save_all=True, append_images=rest)
        opened = httpx.post(f"{url}/api/documents?name=a.tif", content=file.getvalue(), timeout=60)
        job, told = f"{url}/api/documents/{opened.json()['key']}/read", 0.0
        with httpx.stream("POST", job, json={"all_pages": True}, timeout=60) as response:
            try:
                for line in response.iter_lines():
                    if not told and json.loads(line)["event"] == "page":
                        process.send_signal(end)
                        told = time.monotonic()
            except httpx.TransportError:  # cut off
                pass
        assert told
        ended(process, told, 2 * web_page.SHUTDOWN_SECONDS)
