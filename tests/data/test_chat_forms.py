"""Other people's spellings of a conversation, and JSON lists as files of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignvlm.data.chat_forms import turns_to_messages
from alignvlm.data.records import validate_record
from alignvlm.data.sources import JsonlSource
from alignvlm.errors import DataError

PICTURE = {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def chat(question: str, answer: str = "a") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def llava(question: str, answer: str = "a") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "pq":
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("sample", "parts"),
    [
        ({"images": ["p.png"], "messages": chat("<image>Read it.")}, [PICTURE, text("Read it.")]),
        ({"images": ["p.png"], "messages": chat("Read.\n<image>")}, [text("Read."), PICTURE]),
        ({"image": ["p.png"], "messages": chat("<|image|>Read it.")}, [PICTURE, text("Read it.")]),
        ({"image": "p.png", "messages": chat("Read it.")}, [PICTURE, text("Read it.")]),
        (
            {"images": ["p.png", "q.png"], "messages": chat("Is <image> like <image>?")},
            [text("Is"), PICTURE, text("like"), PICTURE, text("?")],
        ),
        ({"image": "p.png", "conversations": llava("<image>\nRead.")}, [PICTURE, text("Read.")]),
        ({"image": "p.png", "conversations": llava("Read.")}, [PICTURE, text("Read.")]),
        ({"conversations": llava("Hello.")}, [text("Hello.")]),
        ({"image": None, "conversations": llava("Hello.")}, [text("Hello.")]),
    ],
)
def test_forms(sample: dict[str, Any], parts: list[Any], folder: Path) -> None:
    record = validate_record(sample, where="w", base_dir=folder, require_answer=True)
    assert record.messages[0] == {"role": "user", "content": parts}
    assert record.messages[1] == {"role": "assistant", "content": [text("a")]}
    assert len(record.images) == parts.count(PICTURE)


def test_marks_of_the_answer_are_text(folder: Path) -> None:
    sample = {"image": "p.png", "conversations": llava("<image>Which tag?", "It is <image>.")}
    record = validate_record(sample, where="w", base_dir=folder)
    assert record.answer == "It is <image>."


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"images": [], "messages": chat("<image>q")}, "place 1 images but there are 0"),
        ({"images": ["p.png"], "messages": chat("<image><image>q")}, "place 2 images but there"),
        ({"images": ["p.png"], "messages": chat("<image>")}, "empty text from the user"),
        ({"image": "p.png", "conversations": [{"from": "bot", "value": "q"}]}, "role 'bot'"),
        ({"image": "p.png", "conversation": llava("q")}, "did you mean 'conversations'"),
        ({"messages": chat("q")}, "missing key 'images'"),
    ],
)
def test_refusals(sample: dict[str, Any], reason: str, folder: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        validate_record(sample, where="w", base_dir=folder)
    assert str(caught.value).startswith("w: ")


def test_where_a_row_is_from(folder: Path) -> None:
    sample = {"image": "p.png", "conversations": llava("<image>q"), "data_source": "ai2d"}
    assert validate_record(sample, where="w", base_dir=folder).source == "ai2d"
    named = {"image": ["p.png"], "messages": chat("q"), "task_name": "t", "dataset_name": "DocVQA"}
    assert validate_record(named, where="w", base_dir=folder).source == "DocVQA"


def test_turns() -> None:
    table = {"user": ["q", ""], "assistant": ["a", "b"]}
    rows = [{"user": "q", "assistant": "a", "source": "x"}, {"user": None, "assistant": "b"}]
    assert turns_to_messages(table) == turns_to_messages(rows) == chat("q")


ROWS = [{"image": "p.png", "conversations": llava(f"<image>\nfrage ä{i} ☃", "ö")} for i in range(3)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_json_list_is_a_file_of_records(folder: Path, indent: int | None, bom: bytes) -> None:
    path = folder / "rows.json"
    path.write_bytes(bom + json.dumps(ROWS, indent=indent, ensure_ascii=False).encode())
    source = JsonlSource(path)
    assert [source[i].question for i in range(3)] == [f"frage ä{i} ☃" for i in range(3)]
    assert source[2].id == f"{path}:3"
    assert len(source) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "no records"),
        (b'[{"a": 1}, {"b": ]', r"rows\.json:2: not valid JSON"),
        (b'[{"a": 1}', r"rows\.json:2: not valid JSON"),
        (b'[{"a": "\xe4"}]', "not UTF-8"),
    ],
)
def test_damaged_lists(folder: Path, content: bytes, reason: str) -> None:
    path = folder / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        JsonlSource(path)


def test_entries_that_are_no_records_are_named(folder: Path) -> None:
    path = folder / "rows.json"
    path.write_text(json.dumps([ROWS[0], 3]), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json:2: expected an object"):
        JsonlSource(path)[1]
