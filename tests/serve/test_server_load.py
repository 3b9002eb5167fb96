"""Many clients, slow answers, clients that leave: everything stays bounded."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from tests.serve.server_thread import CHAT, Running, serving, user_message

from alignvlm.serve import call, limits
from alignvlm.serve.limits import Limits

LONG = 1500
"""Tokens of an answer that takes seconds."""


class Watched:
    """A model whose calls of ``generate`` are seen: how many at once, and how many tokens."""

    def __init__(self, model: Any) -> None:
        self.generate: Callable[..., Any] = model.generate
        self.now = self.most = self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)
        try:
            return self.generate(*args, **kwargs)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture(scope="module")
def model(make_model) -> Any:
    model = make_model()
    model.generation_config.eos_token_id = None  # answers are as long as they may be
    return model


@pytest.fixture
def watched(model, monkeypatch) -> Watched:
    watched = Watched(model)
    monkeypatch.setattr(model, "generate", watched)
    return watched


@pytest.fixture
def start(model, make_processor) -> Callable[..., Any]:
    """``start(**limits)``: a server, as a context."""

    def start(**wanted: Any) -> Any:
        keys = {"max_new_tokens": LONG, "timeout": 60, **wanted}
        return serving(model, make_processor(model.config), Limits(**keys))

    return start


@pytest.fixture
def body(make_image) -> dict[str, Any]:
    """Readable noise: the model's favourite bytes are no text."""
    return {
        "model": "tiny",
        "messages": [user_message("Who?", make_image(28, 28))],
        "max_tokens": 30,
        "temperature": 1.5,
        "seed": 0,
    }


def idle(server: Running, watched: Watched) -> None:
    """Nothing runs, nothing waits, and the model is free at once."""
    server.wait_for("alignvlm_running", 0)
    server.wait_for("alignvlm_queue_waiting", 0)
    end = time.monotonic() + 5
    while watched.now:
        assert time.monotonic() < end, "an answer nobody waits for is still being generated"
        time.sleep(0.01)


def test_twenty_at_once_are_answered_or_told_to_come_back(start, body, watched):
    with start(queue=4) as server:

        def post(stream: bool) -> httpx.Response:
            return server.http.post(CHAT, json={**body, "stream": stream})

        with ThreadPoolExecutor(20) as pool:
            responses = list(pool.map(post, [number % 2 == 0 for number in range(20)]))
        codes = Counter(response.status_code for response in responses)
        assert set(codes) == {200, 503}
        assert codes[200] >= 5
        assert watched.most == 1
        assert watched.calls == codes[200]
        for response in responses:
            if response.status_code == 503:
                assert 1 <= int(response.headers["retry-after"]) <= 60
                assert response.json()["error"]["code"] == "queue_full"
                assert response.json()["error"]["type"] == "server_error"
        idle(server, watched)
        assert post(False).status_code == 200


def test_openais_client_comes_back_by_itself(start, body, watched):
    with (
        start(queue=0) as server,
        server.client() as refused,
        server.client(max_retries=9) as patient,
    ):
        with patient.chat.completions.create(**{**body, "max_tokens": 100, "stream": True}):
            server.wait_for("alignvlm_running", 1)
            with pytest.raises(openai.InternalServerError, match="0 requests are waiting already"):
                refused.chat.completions.create(**body)
            done: Any = patient.chat.completions.create(**body)
        assert done.usage.completion_tokens == 30
        assert watched.most == 1


def test_health_and_metrics_answer_during_a_generation(start, body, watched):
    with start() as server, server.client() as client:
        with client.chat.completions.create(**{**body, "max_tokens": LONG, "stream": True}):
            server.wait_for("alignvlm_running", 1)
            began = time.monotonic()
            assert server.http.get("/health").status_code == 200
            assert server.metrics()["alignvlm_running"] == 1
            assert time.monotonic() - began < 1
        idle(server, watched)


def test_an_answer_that_takes_too_long_is_given_up(start, body, watched):
    slow = {**body, "max_tokens": LONG}
    with start(timeout=0.6) as server, server.client() as client:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.6 s") as caught:
            client.chat.completions.create(**slow)
        assert caught.value.status_code == 504
        assert time.monotonic() - began < 3
        idle(server, watched)
        with (
            pytest.raises(openai.APIError, match=r"no answer within 0\.6 s") as caught_late,
            client.chat.completions.create(**slow, stream=True) as chunks,
        ):
            pieces = [chunk.choices[0].delta.content for chunk in chunks]
            assert pieces  # not reached
        assert caught_late.value.code == "timeout"
        idle(server, watched)
        assert server.metrics()['alignvlm_stream_errors_total{code="timeout"}'] == 1
        done: Any = client.chat.completions.create(**{**body, "max_tokens": 2})
        assert done.usage.completion_tokens == 2


def test_waiting_counts_as_time(start, body, watched):
    with start(timeout=1.0, queue=1) as server:

        def post() -> tuple[int, float]:
            began = time.monotonic()
            response = server.http.post(CHAT, json={**body, "max_tokens": LONG}, timeout=30)
            return response.status_code, time.monotonic() - began

        with ThreadPoolExecutor(2) as pool:
            results = [future.result() for future in [pool.submit(post), pool.submit(post)]]
        assert [code for code, _ in results] == [504, 504]
        assert all(0.9 < seconds < 4 for _, seconds in results)
        idle(server, watched)


@pytest.mark.parametrize(("stream", "n"), [(False, 1), (True, 1), (False, 3)])
def test_a_client_that_leaves_frees_the_model(start, body, watched, stream, n):
    long = {**body, "max_tokens": LONG, "stream": stream, "n": n}
    with start() as server:
        with open_connection(server, long) as connection:
            server.wait_for("alignvlm_running", 1)
            wait_until(lambda: watched.now == 1)
            if stream:
                assert connection.recv(1000)
        idle(server, watched)
        assert server.metrics()["alignvlm_abandoned_total"] == 1
        assert watched.calls == 1  # none of the other answers was begun


def test_a_client_that_leaves_the_queue_costs_nothing(start, body, watched):
    long = {**body, "max_tokens": LONG}
    with start(queue=1) as server:
        with open_connection(server, {**long, "stream": True}):
            wait_until(lambda: watched.now == 1)
            with open_connection(server, body):
                server.wait_for("alignvlm_queue_waiting", 1)
            server.wait_for("alignvlm_queue_waiting", 0)
            assert server.metrics()["alignvlm_running"] == 1
        idle(server, watched)
        assert watched.calls == 1


def test_bodies_that_never_come_keep_nobody_out(start, body, watched):
    with start(timeout=20, queue=1) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(open_connection(server, body, withhold=10))
        assert server.http.post(CHAT, json=body).status_code == 200
        assert server.metrics()["alignvlm_queue_waiting"] == 0
    assert watched.calls == 1


@pytest.mark.parametrize("slow", [True, False])
def test_a_body_that_comes_too_slowly_is_given_up(start, body, watched, monkeypatch, slow):
    monkeypatch.setattr(call, "UPLOAD_SECONDS", 0.5 if slow else 30)
    wanted = b"upload_timeout" if slow else b"no answer within 1"
    with start(timeout=20 if slow else 1) as server:
        with open_connection(server, body, withhold=10) as connection:
            connection.settimeout(20)
            said = b"".join(iter(lambda: connection.recv(1000), b""))
            assert (b" 408 " if slow else b" 504 ") in said and wanted in said
        idle(server, watched)
        assert watched.calls == 0


@pytest.mark.parametrize("slower", [True, False])
def test_a_body_must_keep_up_with_the_rate(start, body, watched, monkeypatch, slower):
    """A trickle that never stops is given up, and one that is fast enough may take longer than the
    time that every body has."""
    monkeypatch.setattr(call, "UPLOAD_SECONDS", 0.5)
    size = len(json.dumps(body))
    # it is sent within 2 s, where an eighth of a second is allowed for the whole body, or 4 s
    monkeypatch.setattr(call, "UPLOAD_RATE", size * 8 if slower else size / 4)
    with start(timeout=30) as server:
        began = time.monotonic()
        said = trickle(server, body, seconds=2.0)
        took = time.monotonic() - began
        idle(server, watched)
    if slower:
        assert b" 408 " in said and b"upload_timeout" in said
        assert b"the body comes too slowly" in said
        assert took < 0.5 + 1 / 8 + call.DRAIN_SECONDS + 3
    else:
        assert b" 200 " in said
        assert took > 1.9
    assert watched.calls == (not slower)


def test_bodies_have_so_many_bytes_together(start, body, watched):
    size = len(json.dumps(body))
    with start(queue=1, max_body=2 * size) as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(open_connection(server, body, withhold=10))
        wait_until(lambda: server.http.post(CHAT, json=body).status_code == 503)
        stack.close()
        wait_until(lambda: server.http.post(CHAT, json=body).status_code == 200)


def test_retry_after_is_when_a_place_will_be_free(monkeypatch):
    now = 100.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    line = limits.WaitingLine(0)

    def told() -> int:
        with pytest.raises(limits.RequestError) as caught:
            line.check()
        return int(caught.value.headers["Retry-After"])

    async def turn(seconds: float) -> None:
        nonlocal now
        await line.turn.acquire()
        line.began()
        now += seconds
        line.ended()

    line.present = 1
    assert told() == 4  # nothing is known yet
    now += 100
    asyncio.run(turn(1.6))
    asyncio.run(turn(3.2))
    assert [told() for _ in range(3)] == [3, 6, 9]  # a place each, as far apart as answers take
    now += 6  # two of them have been free since
    assert [told() for _ in range(2)] == [6, 9]
    assert max(told() for _ in range(50)) == 60
    now += 100
    asyncio.run(line.turn.acquire())
    line.began()
    now += 2
    assert [told(), told()] == [1, 4]  # of three seconds two have gone


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 1.5])
def test_fifty_at_once_are_all_answered(start, body, watched, figures, seconds):
    """OpenAI's own client with its own two retries."""
    generate = watched.generate

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return generate(*args, **kwargs)

    watched.generate = slowly
    body = {**body, "max_tokens": 2}
    with start(timeout=120) as server, server.client(max_retries=2) as client:
        began = time.monotonic()

        def post(_: int) -> float:
            done: Any = client.chat.completions.create(**body)
            assert done.usage.completion_tokens == 2
            return time.monotonic() - began

        with ThreadPoolExecutor(50) as pool:
            took = sorted(pool.map(post, range(50)))
        refused = server.metrics().get(f'alignvlm_requests_total{{code="503",path="{CHAT}"}}', 0)
    figures(
        f"50 clients at once, {seconds} s an answer: all answered after {took[-1]:.1f} s (half "
        f"after {took[25]:.1f} s), {refused:.0f} times told to come back"
    )
    assert watched.most == 1 and watched.calls == 50
    assert took[-1] < 50 * (seconds + 0.3) + 65  # the first guess of what an answer takes is 4 s


def test_reading_ends_when_nobody_waits(start, body, model, caplog):
    layers = 0

    def slowly(*_: Any) -> None:
        nonlocal layers
        layers += 1
        time.sleep(0.3)

    layer = model.model.vision_model.encoder.layers[0]
    handle = layer.register_forward_hook(slowly)
    content = body["messages"][0]["content"]
    long = {**body, "messages": [{"role": "user", "content": [*content[:1] * 8, content[1]]}]}
    with start() as server:
        with open_connection(server, long):
            wait_until(lambda: layers == 1)
        server.wait_for("alignvlm_running", 0)
        handle.remove()
        assert server.http.post(CHAT, json=body).status_code == 200
    assert layers <= 2
    gc.collect()  # what nobody looked at is logged with its traceback when it goes
    assert "never retrieved" not in caplog.text


def test_a_failing_model_is_an_error_and_no_end(start, body, model, monkeypatch, caplog):
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError('secret "details"')

    with start() as server, server.client() as client:
        for name in ("generate", "compact_prompt"):
            with monkeypatch.context() as patch:
                patch.setattr(model, name, fail)
                with pytest.raises(openai.InternalServerError, match="the server's log") as caught:
                    client.chat.completions.create(**body)
                assert "secret" not in str(caught.value)
                assert "secret" in caplog.text
                caplog.clear()
                with pytest.raises(openai.APIError, match="the server's log"):
                    list(client.chat.completions.create(**body, stream=True))
        assert client.chat.completions.create(**body)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def trickle(server: Running, body: dict[str, Any], seconds: float, pieces: int = 40) -> bytes:
    """Send a body in pieces that take so long together; what the server says."""
    data = json.dumps(body).encode()
    step = -(-len(data) // pieces)
    with open_connection(server, body, withhold=len(data)) as connection:
        connection.settimeout(20)
        try:
            for begin in range(0, len(data), step):
                time.sleep(seconds / pieces)
                connection.sendall(data[begin : begin + step])
        except OSError:  # the server has hung up
            pass
        return b"".join(iter(lambda: connection.recv(1000), b""))


class open_connection:
    """A request on a bare socket, which closes when the block ends."""

    def __init__(self, server: Running, body: dict[str, Any], withhold: int = 0) -> None:
        data = json.dumps(body).encode()
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(data)}\r\n"
        head += "connection: close\r\n"
        self.socket.sendall(head.encode() + b"content-type: application/json\r\n\r\n")
        self.socket.sendall(data[: len(data) - withhold])

    def __enter__(self) -> socket.socket:
        return self.socket

    def __exit__(self, *error: object) -> None:
        self.socket.close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """The inference thread of each server is a daemon that waits; no other may stay."""
    before = set(threading.enumerate())
    yield
    left = {t for t in threading.enumerate() if t not in before and not t.daemon}
    assert not left
