"""What one request may cost: seconds and gigabytes, however it is made up."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tests.memory import forget_peak, peak, resident
from tests.serve.server_thread import CHAT, Running, data_url, serving

from alignvlm.documents import pictures
from alignvlm.serve.limits import Limits

ROOT = Path(__file__).parents[2]
CASES = [
    # of 6000 x 6000 pixels: it once took 75 s and 4.9 GiB
    ("one black picture", 1.2, 8, 0),
    ("eight empty pictures", 1.5, 45, 0),
    # pages that fill the model's context
    ("three full pages", 3.0, 250, 7500),
    ("fields of a full page", 3.0, 250, 7500),
]
"""What is asked (see one_request.py), GiB beside the model and the files, seconds of all cores
together, and tokens at least. docs/serve.md promises 4 GiB."""


@pytest.mark.slow
@pytest.mark.parametrize(("case", "most_gib", "most_seconds", "least_tokens"), CASES)
def test_a_request_stays_under_the_ceiling(case, most_gib, most_seconds, least_tokens, figures):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment.pop("OMP_NUM_THREADS")  # as many as a server has
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.serve.one_request", case],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout.splitlines()[-1])  # others may print before
    gib, seconds, tokens = took["gib"], took["seconds"], took["tokens"]
    figures(f"serve, {case}: {tokens} tokens, {gib:.1f} GiB, {seconds:.0f} s of CPU")
    assert tokens >= least_tokens
    assert gib < most_gib
    assert seconds < most_seconds


@pytest.fixture(scope="module")
def server(make_model, make_processor):
    model = make_model()
    with serving(model, make_processor(model.config), Limits()) as running:
        yield running


def refused(server: Running, content: object) -> str:
    """The refusal, which must come soon and take little."""
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}]})
    forget_peak()  # of what ran before in this process
    before, began = resident(), time.process_time()
    headers = {"content-type": "application/json"}
    response = server.http.post(CHAT, content=body.encode(), headers=headers)
    assert response.status_code == 400
    assert time.process_time() - began < 5
    assert peak() - before < 0.7
    return response.json()["error"]["message"]


def picture(url: str) -> list[dict[str, object]]:
    return [{"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize("size", [(1, 39_999_999), (39_999_999, 1)])
def test_a_picture_of_one_row_or_column_is_not_decoded(server, size) -> None:
    message = refused(server, picture(data_url(Image.new("1", size))))
    assert "a side is more than 65535 pixels" in message


@pytest.mark.parametrize("letters", ["a", "ab "])
def test_megabytes_of_text_are_not_tokenized(server, letters) -> None:
    assert "the model's context 2048" in refused(server, letters * (20_000_000 // len(letters)))


def test_a_million_parts_are_not_read(server) -> None:
    assert "at most 1000" in refused(server, [{"type": "text", "text": ""}] * 500_000)


def test_a_tiff_of_very_many_pages_is_not_gone_through(server, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_FRAMES", 20)
    page, file = Image.new("1", (1, 1)), BytesIO()
    page.save(file, "TIFF", save_all=True, append_images=[page] * 20)
    url = "data:image/tiff;base64," + base64.b64encode(file.getvalue()).decode()
    assert "more than 20 pages" in refused(server, picture(url))
