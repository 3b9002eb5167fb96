"""What the page asks of its process, without a browser."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the web page needs starlette")

from starlette.testclient import TestClient

from alignvlm.demo import web_app as module
from alignvlm.demo.desk import Desk
from alignvlm.demo.web_app import WebApp

HOSTS = {"127.0.0.1", "[::1]"}


@pytest.fixture
def client(make_model, make_processor) -> Iterator[TestClient]:
    model = make_model("align")
    app = WebApp(Desk(model, make_processor(model.config)), "tiny", 2)
    yield TestClient(app.build(HOSTS), base_url="http://127.0.0.1:7860")
    app.turns.close(20)


@pytest.fixture
def key(client, make_image) -> str:
    out = io.BytesIO()
    first, *rest = (make_image(56, 28, seed) for seed in range(3))
    first.save(out, "TIFF", save_all=True, append_images=rest)
    told = client.post("/api/documents?name=../three.tif", content=out.getvalue()).json()
    assert (told["name"], told["pages"], told["left_out"]) == ("three.tif", 2, 1)
    return told["key"]


def events(client: TestClient, key: str, job: str, **wanted: Any) -> list[dict[str, Any]]:
    response = client.post(f"/api/documents/{key}/{job}", json=wanted)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_the_page_may_load_nothing_from_elsewhere(client):
    response = client.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for name in ("page.css", "main.js", "viewer.js", "inside.js", "ask.js", "api.js", "dom.js"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/../web_app.py").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:7860"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_web_pages_are_refused(client, headers):
    assert client.get("/api/about", headers=headers).status_code == 403
    assert client.post("/api/examples/0", headers=headers).status_code == 403


def test_own_names_are_answered(client):
    for host in ("127.0.0.1:7860", "[::1]:9"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert client.get("/api/about", headers=headers).json()["name"] == "tiny"


def test_examples_open(client):
    examples = client.get("/api/about").json()["examples"]
    for number, example in enumerate(examples):
        assert client.post(f"/api/examples/{number}").json()["name"] == example["page"]
        assert client.get(f"/api/examples/{number}.png").headers["content-type"] == "image/png"
    assert client.post(f"/api/examples/{len(examples)}").status_code == 400


def test_read_then_take_the_text_away(client, key):
    assert client.get(f"/api/documents/{key}/text.txt").status_code == 400
    *_, page, done = events(client, key, "read", page=2)
    assert page["event"] == "page" and (page["page"], page["width"]) == (2, 56)
    assert done == {"event": "done"}
    told = client.get(f"/api/documents/{key}/text.json")
    assert [one["page"] for one in told.json()["pages"]] == [2]
    assert told.headers["content-disposition"] == "attachment; filename*=UTF-8''three.json"
    events(client, key, "read", all_pages=True)
    told = client.get(f"/api/documents/{key}/text.json")
    assert [one["page"] for one in told.json()["pages"]] == [1, 2]
    assert client.get(f"/api/documents/{key}/text.md").text.startswith("# Page 1")
    assert client.get(f"/api/documents/{key}/text.exe").status_code == 400


def test_ask_and_look(client, key):
    *rest, answer = events(client, key, "ask", page=1, question="What is it?")
    assert {event["event"] for event in rest} >= {"answering"}
    assert answer["event"] == "done" and answer["seconds"] > 0
    assert all(place["size"] == [56, 28] for place in answer["places"])
    *_, drawn = events(client, key, "window", page=1, sigma=2.0, halved=1)
    assert drawn["cells"] and drawn["after"] is not None


@pytest.mark.parametrize(
    ("job", "wanted", "text"),
    [
        ("ask", {"page": 1, "question": " "}, "write a question first"),
        ("ask", {"page": 7, "question": "What?"}, "three.tif has no page 7"),
        ("fields", {"fields": " , "}, "no fields"),
        ("fields", {"fields": "total"}, "encoder"),
    ],
)
def test_what_cannot_be_done_is_one_line(client, key, job, wanted, text):
    last = events(client, key, job, **wanted)[-1]
    assert last["event"] == "error" and text in last["text"]


@pytest.mark.parametrize(
    "body",
    ['{"sigma": -1}', '{"sigma": 1e999}', '{"page": 0}', '{"what": 1}', "[", '{"halved":-1}'],
)
def test_bad_requests_are_refused(client, key, body):
    response = client.post(f"/api/documents/{key}/ask", content=body)
    assert response.status_code == 400 and "\n" not in response.json()["error"]


def test_other_refusals(client, key, monkeypatch):
    assert client.post(f"/api/documents/{key}/dance").status_code == 400
    assert client.post("/api/documents/unknown/read").status_code == 400
    assert client.get(f"/api/documents/{key}/1/poster.jpg").status_code == 400
    assert client.get(f"/api/documents/{key}/fields.csv").status_code == 400
    assert "damaged" in client.post("/api/documents?name=a.pdf", content=b"%PDF-1").json()["error"]
    monkeypatch.setattr(module, "MAX_UPLOAD", 2**20)
    refused = client.post("/api/documents?name=a.png", content=b"0" * (2**20 + 1))
    assert refused.json()["error"] == "a.png is larger than 1 MiB"


@pytest.mark.parametrize("pause", [0.02, 0.3])
def test_an_upload_that_takes_too_long_is_given_up(client, make_image, monkeypatch, pause):
    """However steadily it trickles."""
    monkeypatch.setattr(module, "UPLOAD_SECONDS", 1)
    out = io.BytesIO()
    make_image(56, 28).save(out, "PNG")
    data, sent = out.getvalue(), list[int]()

    async def trickle() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), len(data) // 9):
            sent.append(begin)
            yield data[begin : begin + len(data) // 9]
            await asyncio.sleep(pause)

    async def upload() -> httpx.Response:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url=str(client.base_url)) as sender:
            return await sender.post("/api/documents?name=a.png", content=trickle())

    response = asyncio.run(upload())
    if pause < 0.1:
        assert response.status_code == 200 and response.json()["pages"] == 1
    else:
        assert response.status_code == 400
        assert response.json()["error"] == "a.png took longer than 1 s to arrive"
        assert len(sent) < 9


def test_pictures_and_putting_away(client, key):
    page = client.get(f"/api/documents/{key}/2/page.jpg")
    assert page.headers["content-type"] == "image/jpeg" and page.content[:2] == b"\xff\xd8"
    assert client.get(f"/api/documents/{key}/2/thumbnail.jpg").status_code == 200
    assert client.delete(f"/api/documents/{key}").status_code == 204
    assert "open it again" in client.get(f"/api/documents/{key}/1/page.jpg").json()["error"]
