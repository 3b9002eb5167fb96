"""``alignvlm serve`` as a process of its own, and what it refuses to start."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import typer
from PIL import Image

from alignvlm.cli.serving import serve
from alignvlm.errors import AlignVLMError, ConfigError
from alignvlm.serve import call, server
from alignvlm.serve.attachments import FETCH_SECONDS
from alignvlm.serve.limits import FIRST_GUESS, LONGEST_RETRY, MIB, Limits
from alignvlm.serve.server import is_loopback, model_name


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_process_serves_until_it_is_told_to_end(tiny_model_dir, end):
    command = [sys.executable, "-m", "alignvlm", "serve", str(tiny_model_dir), "--port", "0"]
    environment = {**os.environ, "ALIGNVLM_API_KEY": "s3cret", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--name", "tiny", "--max-new-tokens", "50", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r'\{"url": "(http://127\.0\.0\.1:\d+)/v1"\}\n', line)
        assert found, line or process.stderr.read()  # type: ignore[union-attr]
        wait_for(found[1] + "/health")
        with openai.OpenAI(base_url=found[1] + "/v1", api_key="s3cret") as client:
            messages: Any = [{"role": "user", "content": "Who?"}]
            keys: dict[str, Any] = {"model": "tiny", "messages": messages}
            assert client.chat.completions.create(**keys, max_tokens=3).usage
            with pytest.raises(openai.BadRequestError, match="limit of 50"):
                client.chat.completions.create(**keys, max_tokens=51)
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_web_page_ends_in_good_order_and_writes_no_document(tiny_model_dir, tmp_path, end):
    process = subprocess.Popen(
        [sys.executable, "-m", "alignvlm", "demo", str(tiny_model_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line or process.stderr.read()  # type: ignore[union-attr]
        page = io.BytesIO()
        Image.new("RGB", (64, 48), "white").save(page, "PNG")
        url = found[0] + "api/documents?name=secret.png"
        sent = httpx.post(url, content=page.getvalue(), timeout=60)
        assert sent.status_code == 200 and sent.json()["pages"] == 1
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def wait_for(url: str) -> None:
    """Until the socket that listens already is also served."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            assert httpx.get(url, timeout=30).status_code == 200
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


def test_the_documentation_says_the_limits_as_they_are():
    table = (Path(__file__).parents[2] / "docs" / "serve.md").read_text().split("## Limits")[1]
    limits = Limits()
    for option, value in {
        "--max-body-mib": limits.max_body // MIB,
        "--max-images": limits.max_images,
        "--max-pixels": f"{limits.max_pixels:,}".replace(",", " "),
        "--max-new-tokens": limits.max_new_tokens,
        "--queue": limits.queue,
        "--timeout": f"{limits.timeout:g}",
    }.items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{option}`"))
        assert row.split("|")[2].strip() == str(value)
    said = " ".join(table.split())
    seconds, rate = call.UPLOAD_SECONDS, call.UPLOAD_RATE // 1024
    assert f"a body's time: {seconds:g} s, and 1 s for each {rate} KiB" in said
    assert f"guesses {FIRST_GUESS:g} s" in said
    assert f"{LONGEST_RETRY} s is the longest `Retry-After`" in said
    assert f"give the answer under way {server.SHUTDOWN_SECONDS} s to end" in said
    assert f"must arrive whole within {FETCH_SECONDS:g} s," in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_no_other_machine_without_a_key(host, tmp_path):
    with pytest.raises(ConfigError, match=r"set an API key .* or say --allow-no-key"):
        serve(str(tmp_path), host=host)


@pytest.mark.parametrize("keys", [{"api_key": "s3cret"}, {"allow_no_key": True}])
def test_other_machines_with_a_key_or_a_flag(keys, tmp_path):
    # past that check there is no model
    with pytest.raises(AlignVLMError, match=r"config\.json"):
        serve(str(tmp_path), host="0.0.0.0", port=0, **keys)


@pytest.mark.parametrize(
    ("keys", "hosts"),
    [
        ({}, {"127.0.0.1", "[::1]", "localhost"}),
        ({"host": "127.0.0.7"}, {"127.0.0.1", "127.0.0.7", "[::1]", "localhost"}),
        ({"api_key": "s3cret"}, None),
        ({"allow_no_key": True}, None),
    ],
)
def test_without_a_key_the_server_has_only_its_own_names(tiny_model_dir, monkeypatch, keys, hosts):
    class Made(Exception):
        pass

    def create_app(*args: Any, **given: Any) -> Any:
        assert given.get("hosts") == hosts
        raise Made

    monkeypatch.setattr(server, "create_app", create_app)
    with pytest.raises(Made):
        serve(str(tiny_model_dir), port=0, **keys)


def test_a_taken_port_is_said_before_the_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address"):
            serve(str(tmp_path), port=port)


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "192.0.2.1")))


def test_an_unknown_host_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="--host no host at all: "):
        serve(str(tmp_path), host="no host at all")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"timeout": 0.0}, "timeout must be more than 0"),
        ({"timeout": float("nan")}, "timeout must be more than 0"),
        ({"max_pixels": 10**9}, "max_pixels can be at most"),
        ({"max_images": 0}, "max_images must be at least 1"),
        ({"queue": -1}, "queue must be at least 0"),
    ],
)
def test_limits_that_make_no_sense(keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        serve(str(tmp_path), **keys)


def test_a_model_is_called_as_its_folder_or_hub_id(tmp_path):
    assert model_name(str(tmp_path)) == tmp_path.name
    assert model_name("some/model") == "some/model"


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "alignvlm.serve.server", raising=False)
    with pytest.raises(ConfigError, match=r"uvicorn is missing.*pip install 'alignvlm\[serve\]'"):
        serve(str(tmp_path))


def test_options_are_those_of_the_documentation(capsys):
    app = typer.Typer()
    app.command()(serve)
    with pytest.raises(SystemExit):
        app(["--help"], standalone_mode=True)
    shown = capsys.readouterr().out
    for option in ("host", "port", "api-key", "allow-urls", "max-body-mib", "queue", "timeout"):
        assert f"--{option}" in shown
