"""Every form a sample may have, and a named refusal for everything else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignvlm.data.columns import column_map, row_to_object
from alignvlm.data.records import (
    Record,
    load_images,
    make_record,
    normalise_messages,
    validate_record,
)
from alignvlm.errors import DataError

WHERE = "file.jsonl:17"
IMAGE = {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def full(**changes: Any) -> dict[str, Any]:
    sample = {
        "id": "a",
        "images": [Image.new("RGB", (4, 4))],
        "messages": [
            {"role": "user", "content": [IMAGE, text("q?")]},
            {"role": "assistant", "content": "yes"},
        ],
        "source": "mine",
    }
    return {k: v for k, v in {**sample, **changes}.items() if v is not ...}


def test_full_form_is_normalised() -> None:
    record = validate_record(full(), where=WHERE, require_answer=True)
    assert record.messages == [
        {"role": "user", "content": [IMAGE, text("q?")]},
        {"role": "assistant", "content": [text("yes")]},
    ]
    assert (record.id, record.source, record.words) == ("a", "mine", None)
    assert (record.question, record.answer) == ("q?", "yes")


def test_short_form_equals_the_full_form(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    words = [{"text": "hi", "box": [0, 0, 2, 2], "line": 0, "char_x": [0, 1]}]
    short = {"image": "p.png", "question": "q?", "answer": "yes", "words": words}
    record = validate_record(short, where=WHERE, base_dir=tmp_path, require_answer=True)
    assert record.id == WHERE
    assert record.images == [str(tmp_path / "p.png")]
    assert record.messages == validate_record(full(), where=WHERE).messages
    assert record.words == [[{"text": "hi", "box": (0, 0, 2, 2), "line": 0, "char_x": (0, 1)}]]
    no_answer = {"image": "p.png", "question": "q?"}
    assert validate_record(no_answer, where=WHERE, base_dir=tmp_path).answer is None


def test_string_content_puts_images_first() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "compare"},
        {"role": "assistant", "content": "done"},
    ]
    parts = normalise_messages(messages, 2, where=WHERE)
    assert parts[1]["content"] == [IMAGE, IMAGE, text("compare")]
    assert parts[0]["content"] == [text("be brief")]
    assert normalise_messages(parts, 2, where=WHERE) == parts  # idempotent


USER = {"role": "user", "content": "q?"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ([1], "expected an object"),
        ({}, "missing key 'images'"),
        (full(images=...), "missing key 'images'"),
        (full(messages=...), "missing key 'messages'"),
        ({"image": "p.png"}, "missing key 'question'"),
        (full(imags=[]), "unknown key 'imags'.*did you mean 'images'"),
        ({"image": "p", "question": "q", "anwser": "a"}, "did you mean 'answer'"),
        ({"image": "p", "question": 3}, "'question' must be a string"),
        (full(id=""), "'id' must be"),
        (full(source=3), "'source' must be"),
        (full(images="p.png"), "'images' must be a list"),
        (full(images=[3]), "image 1 must be a path"),
        (full(images=["nowhere.png"]), "image 1 not found"),
        (full(images=[]), "place 1 images but there are 0"),
        (full(messages=[{"role": "user", "content": [text("q")]}]), "place 0 images"),
        (full(messages=[]), "non-empty list"),
        (full(messages=["hi"]), "message 1: expected an object"),
        (full(messages=[{"role": "human", "content": "q"}]), "role 'human'"),
        (full(messages=[{**USER, "contents": "q"}]), "did you mean 'content'"),
        (full(messages=[{"role": "system", "content": "s"}]), "no user message"),
        (full(messages=[ANSWER, USER]), "message 1 is the assistant's, expected the user's"),
        (full(messages=[USER, USER]), "message 2 is the user's, expected the assistant's"),
        (full(messages=[USER, ANSWER, {"role": "system", "content": "s"}]), "message 3"),
        (full(messages=[{"role": "user", "content": " "}]), "empty text from the user"),
        (full(messages=[USER, {"role": "assistant", "content": ""}]), "empty text from the ass"),
        (full(messages=[{"role": "user", "content": [IMAGE]}]), "empty text from the user"),
        (full(messages=[{"role": "user"}]), "content must be a string or a list"),
        (full(messages=[{"role": "user", "content": [{"type": "video"}]}]), "neither an image"),
        (full(messages=[USER, {"role": "assistant", "content": [IMAGE]}]), "only a user"),
        (
            full(messages=[{"role": "user", "content": [{**IMAGE, "image": "p"}, text("q")]}]),
            "the picture goes in 'images'",
        ),
        (full(messages=[USER]), "no answer"),
        (full(words=[]), "one list per image"),
        (full(words=[["hi"]]), "word 1 of image 1: expected an object"),
        (full(words=[[{"text": "", "box": [0, 0, 1, 1]}]]), "empty text"),
        (full(words=[[{"text": "a", "box": [0, 0, 1]}]]), "box must be"),
        (full(words=[[{"text": "a", "box": [2, 0, 1, 1]}]]), "box must be"),
        (full(words=[[{"text": "a", "box": [0, 0, 1, float("nan")]}]]), "box must be"),
        (full(words=[[{"text": "a", "bbox": [0, 0, 1, 1]}]]), "did you mean 'box'"),
        (full(words=[[{"text": "a", "box": [0, 0, 1, 1], "line": 1.5}]]), "line must be"),
        (full(words=[[{"text": "a", "box": [0, 0, 1, 1], "char_x": [0] * 4}]]), "char_x must"),
    ],
)
def test_refusals_start_with_where(sample: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        validate_record(sample, where=WHERE, require_answer=True)
    assert str(caught.value).startswith(WHERE)
    assert "\n" not in str(caught.value)


def test_record_allows_no_other_field() -> None:
    with pytest.raises(ValueError, match="extra"):
        Record(id="a", images=[], messages=[], wrds=[])


def test_make_record() -> None:
    record = make_record("a", ["p.png"], [("q1", "a1"), ("q2", "a2")], source="s")
    assert [m["role"] for m in record.messages] == ["user", "assistant"] * 2
    assert record.messages[0]["content"] == [IMAGE, text("q1")]
    assert (record.question, record.answer) == ("q1", "a2")


def test_load_images(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.effect_noise((64, 64), 50).save(path)
    record = make_record("rec", [str(path), Image.new("RGBA", (2, 2))], [("q", "a")], source="s")
    assert [(image.mode, image.size) for image in load_images(record)] == [
        ("RGB", (64, 64)),
        ("RGB", (2, 2)),
    ]
    data = path.read_bytes()
    for content, reason in [
        (data[:1500], "truncated"),
        (b"text", "not an image"),
        (None, "no such"),
    ]:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=reason) as caught:
            load_images(record)
        assert str(caught.value).startswith("rec: image 1: ")
        path.touch()


def test_load_images_refuses_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    record = make_record("rec", [str(tmp_path / "p.png")], [("q", "a")], source="s")
    with pytest.raises(DataError, match=r"rec: image 1: .*too many pixels"):
        load_images(record)


def test_columns() -> None:
    present = ["img", "q", "a", "other"]
    mapped = column_map({"image": "img", "question": "q", "answer": "a"}, present, where="set")
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    row = {"img": {"bytes": buffer.getvalue(), "path": None}, "q": "?", "a": ["x", "y"], "other": 1}
    obj = row_to_object(row, mapped, where="set:0")
    record = validate_record(obj, where="set:0")
    assert record.images[0].size == (3, 2)
    assert record.answer == "x"
    row["img"]["bytes"] = b"junk"
    with pytest.raises(DataError, match="set:0: the image bytes"):
        row_to_object(row, mapped, where="set:0")
    for columns, reason in [
        ({"img": "img"}, "unknown column role"),
        ({"image": "imgs"}, "no column 'imgs'.*did you mean 'img'"),
        ({"image": "img"}, "map columns to image and question"),
        (None, "map columns to image and question"),
    ]:
        with pytest.raises(DataError, match=reason):
            column_map(columns, present, where="set")


def test_messages_columns() -> None:
    mapped = column_map(None, ["messages", "images", "question"], where="set")
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, text("q")]},
        {"role": "assistant", "content": [text("a")]},
    ]
    row = {"messages": messages, "images": [Image.new("RGB", (2, 2))], "question": "unused"}
    record = validate_record(row_to_object(row, mapped, where="w"), where="w", require_answer=True)
    assert record.messages[0]["content"] == [IMAGE, text("q")]
