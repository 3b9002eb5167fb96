"""The one record format: chat messages with images, as TRL and transformers write them.

A line of a JSONL file in full::

    {"id": "r1", "images": ["p.png"], "source": "mine",
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
                  {"role": "assistant", "content": "42"}]}

``id`` and ``source`` may be left out. Short forms, all equal to the above:

- ``content`` may be a plain string; if no message places an image, every image goes first in the
  first user turn;
- other people's conversations: ``<image>`` marks, LLaVA's ``conversations``
  (:mod:`alignvlm.data.chat_forms`);
- ``{"image": "p.png", "question": "?", "answer": "42"}`` is one image, one question, one answer.

``words`` (optional) has one list per image of ``{"text", "box": [x0, y0, x1, y1]}`` in pixels, and
perhaps ``"line"``, ``"char_x"`` (the left edge of each character) and ``"middle"`` (of the line).
In the short form it may be the single image's list itself.

``unread`` (optional, with ``words``) has one list per image of boxes ``[x0, y0, x1, y1]`` in pixels
in which something is drawn that ``words`` do not say: those cells are not blank, but unknown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ..documents.pictures import open_image
from ..errors import DataError, nearest
from ..processing.image_processor import to_rgb
from .chat_forms import chat_form, own_turn

FULL_KEYS = ("id", "images", "messages", "words", "unread", "source")
SHORT_KEYS = ("id", "image", "question", "answer", "words", "source")
ROLES = ("system", "user", "assistant")


class Record(BaseModel):
    """One training or evaluation sample; :func:`validate_record` builds it from loose input.

    ``messages`` are normalised: ``content`` is always a list of ``{"type": "image"}`` and
    ``{"type": "text", "text": str}`` parts, with one image part per entry of ``images``.

    ``independent_turns``: each turn repeats the images and is answered from them alone
    (:mod:`alignvlm.data.questions_together`).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    id: str
    images: list[Image.Image | str]
    messages: list[dict[str, Any]]
    words: list[list[dict[str, Any]]] | None = None
    unread: list[list[tuple[float, float, float, float]]] | None = None
    source: str = ""
    independent_turns: bool = Field(False, exclude=True)  # of a sample, never in a file

    @property
    def question(self) -> str:
        """Text of the first user turn."""
        return self._text("user", 0)

    @property
    def answer(self) -> str | None:
        """Text of the last assistant turn; ``None`` when there is none."""
        return self._text("assistant", -1)

    def _text(self, role: str, which: int) -> Any:
        turns = [m for m in self.messages if m["role"] == role]
        if not turns:
            return None
        content = turns[which]["content"]
        return "".join(part["text"] for part in content if part["type"] == "text")


def make_record(
    record_id: str,
    images: Sequence[Image.Image | str],
    turns: Sequence[tuple[str, str]],
    *,
    source: str,
    words: Sequence[Iterable[Any]] | None = None,
    unread: Sequence[Sequence[tuple[float, float, float, float]]] | None = None,
) -> Record:
    """Build a record from ``(question, answer)`` turns; the images come first in the first turn."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return Record(
        id=record_id,
        images=list(images),
        messages=normalise_messages(messages, len(images), where=record_id),
        words=None if words is None else [word_dicts(page) for page in words],
        unread=None if unread is None else [list(page) for page in unread],
        source=source,
    )


def word_dicts(words: Iterable[Any]) -> list[dict[str, Any]]:
    """Turn words (objects with ``text``, ``box``, ``line``, ``char_x``, ``middle``) into dicts."""
    return [
        {"text": w.text, "box": tuple(w.box), "line": w.line, "char_x": tuple(w.char_x)}
        | ({} if w.middle is None else {"middle": w.middle})
        for w in words
    ]


def transcript(words: Sequence[Any]) -> str:
    """Join words with spaces, and lines (runs of the same ``line``) with new lines."""
    lines: dict[int, list[str]] = {}
    for word in words:
        lines.setdefault(word.line, []).append(word.text)
    return "\n".join(" ".join(line) for line in lines.values())


def validate_record(
    obj: Any,
    *,
    where: str,
    base_dir: Path | None = None,
    require_answer: bool = False,
) -> Record:
    """Check one sample and return it in full, normalised form.

    Args:
        obj: the decoded sample, full or short form (see the module's text).
        where: how to name the sample in errors, such as ``"file.jsonl:17"``; also its id if it
            has none.
        base_dir: folder that relative image paths start from; an image is not opened here, but its
            file must be there.
        require_answer: refuse a sample without an assistant turn at its end.

    Raises:
        DataError: the first thing wrong; the message starts with ``where``.
    """
    if not isinstance(obj, Mapping):
        raise DataError(f"{where}: expected an object with named fields, got {_kind(obj)}")
    obj = _full_form(obj, where)
    record_id = obj.get("id")
    if record_id is not None and not (isinstance(record_id, str | int) and str(record_id).strip()):
        raise DataError(f"{where}: 'id' must be a non-empty string, got {record_id!r}")
    source = obj.get("source")
    if source is not None and not isinstance(source, str):
        raise DataError(f"{where}: 'source' must be a string, got {_kind(source)}")
    if not isinstance(obj["images"], list | tuple):
        raise DataError(f"{where}: 'images' must be a list, got {_kind(obj['images'])}")
    images = [_image(x, i, where, base_dir) for i, x in enumerate(obj["images"])]
    messages = normalise_messages(obj["messages"], len(images), where=where)
    if require_answer and messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: no answer: the last message is not the assistant's")
    return Record(
        id=where if record_id is None else str(record_id),
        images=images,
        messages=messages,
        words=_words(obj.get("words"), len(images), where),
        unread=_unread(obj.get("unread"), len(images), where),
        source=source or "",
    )


def _full_form(obj: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check the keys and write the short form out in full."""
    obj = chat_form(obj)
    short = "messages" not in obj and any(key in obj for key in ("image", "question", "answer"))
    known = SHORT_KEYS if short else FULL_KEYS
    for key in obj:
        if key not in known:
            hint = nearest(key, (*known, "conversations"))
            raise DataError(f"{where}: unknown key {key!r}{hint}; known: {', '.join(known)}")
    required = ("image", "question") if short else ("images", "messages")
    for key in required:
        if obj.get(key) is None:
            raise DataError(f"{where}: missing key {key!r} (needs {' and '.join(required)})")
    if not short:
        return dict(obj)
    messages = [{"role": "user", "content": obj["question"]}]
    for key in ("question", "answer"):
        value = obj.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key!r} must be a string, got {_kind(value)}")
    if obj.get("answer") is not None:
        messages.append({"role": "assistant", "content": obj["answer"]})
    words = obj.get("words")
    if isinstance(words, list) and all(isinstance(word, Mapping) for word in words):
        words = [words]
    return {
        "id": obj.get("id"),
        "images": [obj["image"]],
        "messages": messages,
        "words": words,
        "source": obj.get("source"),
    }


def normalise_messages(messages: Any, num_images: int, *, where: str) -> list[dict[str, Any]]:
    """Return messages whose ``content`` is always a list of parts, checked against the images.

    A string becomes one text part. If no message places an image and the first user turn is a
    string, all images are placed first in that turn.

    Raises:
        DataError: bad roles or their order (an optional system message, then user and assistant in
            turn), bad parts, empty text, or image parts that do not match ``num_images``.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{where}: 'messages' must be a non-empty list of role and content")
    messages = [own_turn(message) for message in messages]
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        at = f"{where}: message {index + 1}"
        if not isinstance(message, Mapping):
            raise DataError(f"{at}: expected an object with role and content, got {_kind(message)}")
        for key in message:
            if key not in ("role", "content") and message[key] is not None:
                hint = nearest(key, ("role", "content"))
                raise DataError(f"{at}: unknown key {key!r}{hint}; known: role, content")
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{at}: role {role!r} is not one of {', '.join(ROLES)}")
        result.append({"role": role, "content": _parts(message.get("content"), role, at)})
    start = 1 if result[0]["role"] == "system" else 0
    if len(result) == start:
        raise DataError(f"{where}: no user message")
    for index, message in enumerate(result[start:]):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise DataError(
                f"{where}: message {start + index + 1} is the {message['role']}'s, expected the "
                f"{expected}'s: after an optional system message, user and assistant take turns"
            )
    placed = sum(part["type"] == "image" for m in result for part in m["content"])
    if placed == 0 and isinstance(messages[start]["content"], str):
        result[start]["content"][:0] = [{"type": "image"} for _ in range(num_images)]
        placed = num_images
    if placed != num_images:
        raise DataError(f"{where}: the messages place {placed} images but there are {num_images}")
    return result


def _parts(content: Any, role: str, at: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not content:
        raise DataError(f"{at}: content must be a string or a list of parts, got {_kind(content)}")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            if role != "user":
                raise DataError(f"{at}: only a user message may place an image")
            if any(part[key] is not None for key in part if key != "type"):
                raise DataError(
                    f"{at}: an image part is just {{'type': 'image'}}; the picture goes in 'images'"
                )
            parts.append({"type": "image"})
        elif kind == "text":
            text = part.get("text")
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{at}: empty text from the {role}")
            parts.append({"type": "text", "text": text})
        else:
            raise DataError(f"{at}: part {part!r:.80} is neither an image nor a text part")
    if not any(part["type"] == "text" for part in parts):
        raise DataError(f"{at}: empty text from the {role}")
    return parts


def _image(image: Any, index: int, where: str, base_dir: Path | None) -> Image.Image | str:
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, str | os.PathLike) or not str(image):
        raise DataError(f"{where}: image {index + 1} must be a path, got {_kind(image)}")
    path = Path(image)
    if base_dir is not None and not path.is_absolute():
        path = Path(base_dir) / path
    if not path.is_file():
        raise DataError(f"{where}: image {index + 1} not found: {path}")
    return str(path)


def _words(words: Any, num_images: int, where: str) -> list[list[dict[str, Any]]] | None:
    if words is None:
        return None
    if not isinstance(words, list | tuple) or len(words) != num_images:
        found = f"{len(words)} lists" if isinstance(words, list | tuple) else _kind(words)
        raise DataError(f"{where}: 'words' needs one list per image ({num_images}), got {found}")
    return [
        [_word(word, f"{where}: word {i + 1} of image {page + 1}") for i, word in enumerate(found)]
        for page, found in enumerate(words)
    ]


def _word(word: Any, at: str) -> dict[str, Any]:
    known = ("text", "box", "line", "char_x", "middle")
    if not isinstance(word, Mapping):
        raise DataError(f"{at}: expected an object with text and box, got {_kind(word)}")
    for key in word:
        if key not in known:
            raise DataError(f"{at}: unknown key {key!r}{nearest(key, known)}")
    text, box = word.get("text"), word.get("box")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{at}: empty text")
    if not _is_box(box):
        raise DataError(f"{at} ({text!r:.40}): box must be [x0, y0, x1, y1], got {box!r:.80}")
    result: dict[str, Any] = {"text": text, "box": tuple(box)}
    if word.get("line") is not None:
        if not isinstance(word["line"], int) or isinstance(word["line"], bool):
            raise DataError(f"{at} ({text!r:.40}): line must be a whole number")
        result["line"] = word["line"]
    if word.get("char_x") is not None:
        if not _numbers(word["char_x"]) or len(word["char_x"]) != len(text):
            raise DataError(f"{at} ({text!r:.40}): char_x must be {len(text)} numbers")
        result["char_x"] = tuple(word["char_x"])
    if word.get("middle") is not None:
        if not _numbers([word["middle"]]):
            raise DataError(f"{at} ({text!r:.40}): middle must be a number")
        result["middle"] = word["middle"]
    return result


def _unread(unread: Any, num_images: int, where: str) -> list[list[Any]] | None:
    if unread is None:
        return None
    if not isinstance(unread, list | tuple) or len(unread) != num_images:
        raise DataError(f"{where}: 'unread' needs one list of boxes per image ({num_images})")
    for page, boxes in enumerate(unread):
        if not isinstance(boxes, list | tuple) or not all(map(_is_box, boxes)):
            raise DataError(f"{where}: 'unread' of image {page + 1} must be boxes [x0, y0, x1, y1]")
    return [[tuple(box) for box in boxes] for boxes in unread]


def _is_box(box: Any) -> bool:
    return _numbers(box) and len(box) == 4 and box[0] <= box[2] and box[1] <= box[3]


def _numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def load_images(record: Record) -> list[Image.Image]:
    """Open and fully decode a record's images as RGB.

    Raises:
        DataError: an image is missing, not an image, truncated, or too large to be honest; the
            message starts with the record's id.
    """
    images = []
    for index, image in enumerate(record.images):
        try:
            if isinstance(image, Image.Image):
                image.load()
                images.append(to_rgb(image))
            else:
                images.append(open_image(image))
        except (DataError, OSError, SyntaxError) as error:
            raise DataError(f"{record.id}: image {index + 1}: {error}") from error
    return images
