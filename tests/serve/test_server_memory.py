"""What one request may cost: seconds and gigabytes, however it is made up."""

from __future__ import annotations

import base64
import json
import resource
import subprocess
import sys
import time
from io import BytesIO

import pytest
from PIL import Image
from tests.serve.server_thread import CHAT, Running, data_url, serving

from alignvlm.documents import pictures
from alignvlm.serve.limits import Limits

CEILING_GIB = 2.0
"""Half of what docs/serve.md promises, beside the model and the bodies."""
WHOLE = """
import base64, io, json, resource, threading, time
from PIL import Image
from alignvlm.inference.loading import load_model
from alignvlm.serve.attachments import Attachment
from alignvlm.serve.completions import Generator
from alignvlm.serve.limits import Limits
from alignvlm.serve.schema import parse_request

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

limits = Limits()
generator = Generator(*load_model("smol"), limits)
file = io.BytesIO()
Image.new("RGB", (6300, 6300)).save(file, "PNG")
part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
content = [part] * limits.max_images + [{"type": "text", "text": "What is the total?"}]
body = {"model": "smol", "messages": [{"role": "user", "content": content}]}
request = parse_request(json.dumps(body).encode(), limits, "smol")
documents = [Attachment(str(i), file.getvalue()) for i in range(limits.max_images)]
before, began = peak(), time.process_time()
generator._prepare(request, documents, threading.Event())
print(peak() - before, time.process_time() - began)
"""


@pytest.mark.slow
def test_the_largest_request_stays_under_the_ceiling() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WHOLE], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    gib, seconds = map(float, done.stdout.splitlines()[-1].split())  # others may print before
    print(f"8 pictures of 40 million pixels: {gib:.1f} GiB, {seconds:.0f} s of CPU")
    assert gib < CEILING_GIB
    assert seconds < 120


@pytest.fixture(scope="module")
def server(make_model, make_processor):
    model = make_model()
    with serving(model, make_processor(model.config), Limits()) as running:
        yield running


def refused(server: Running, content: object) -> str:
    """The refusal, which must come soon and take little."""
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}]})
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.process_time()
    headers = {"content-type": "application/json"}
    response = server.http.post(CHAT, content=body.encode(), headers=headers)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert response.status_code == 400
    assert time.process_time() - began < 5
    assert (after.ru_maxrss - before.ru_maxrss) / 2**20 < 0.7
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
