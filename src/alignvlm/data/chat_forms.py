"""How other people's data writes a conversation about images, as our own ``messages``.

- LLaVA: ``{"image": "p.png", "conversations": [{"from": "human", "value": "<image>\\n?"}, ...]}``
- ms-swift: ``{"images": ["p.png"], "messages": [{"role": "user", "content": "<image>?"}, ...]}``
- mPLUG-DocOwl: the same with ``<|image|>``, and ``image`` a list
- FineVision, Docmatix: ``texts``, a list of ``{"user", "assistant"}``

A mark in a user's turn is where an image goes. In other turns it is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MARKS = re.compile(r"<image>|<\|image\|>")
ROLE_NAMES = {"human": "user", "gpt": "assistant", "system": "system"}
"""LLaVA's names of the roles."""
ASIDE = ("data_source", "dataset_name", "task_name")
"""Keys of the sets above that say where a row is from; the first there is becomes ``source``."""


def chat_form(obj: Mapping[str, Any]) -> dict[str, Any]:
    """An object with ``conversations`` or ``messages`` as one with ``messages`` and ``images``.

    Every other object comes back as it is.
    """
    result = dict(obj)
    if "conversations" in result and "messages" not in result:
        result["messages"] = result.pop("conversations")
        if "image" not in result and "images" not in result:
            result["images"] = []  # LLaVA's way to write a conversation about nothing
    if "messages" not in result:
        return result
    if "image" in result and "images" not in result:
        result["images"] = image_list(result.pop("image"))
    origin = next((result[key] for key in ASIDE if isinstance(result.get(key), str)), None)
    for key in ASIDE:
        result.pop(key, None)
    if origin is not None and result.get("source") is None:
        result["source"] = origin
    return result


def image_list(value: Any) -> Any:
    """One image, several or none as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def own_turn(message: Any) -> Any:
    """A turn as ``role`` and ``content``, and the marks of a user's turn as image parts."""
    if isinstance(message, Mapping) and set(message) == {"from", "value"}:
        role = ROLE_NAMES.get(message["from"], message["from"])
        message = {"role": role, "content": message["value"]}
    if not isinstance(message, Mapping) or message.get("role") != "user":
        return message
    content = message.get("content")
    if not isinstance(content, str) or not MARKS.search(content):
        return message
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(MARKS.split(content)):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return {**message, "content": parts}


def turns_to_messages(turns: Any) -> list[dict[str, Any]]:
    """A list of ``{"user", "assistant"}`` (or a table of it) as messages, without empty turns."""
    if isinstance(turns, Mapping):  # how ``datasets`` gives a sequence of such
        turns = [dict(zip(turns, values, strict=False)) for values in zip(*turns.values())]
    messages = []
    for turn in turns or []:
        user, assistant = str(turn.get("user") or ""), str(turn.get("assistant") or "")
        if user.strip() and assistant.strip():
            messages += paired([user], [assistant])
    return messages


def paired(questions: Sequence[Any], answers: Sequence[Any]) -> list[dict[str, Any]]:
    """Questions and their answers as messages, turn by turn."""
    return [
        {"role": role, "content": text}
        for pair in zip(questions, answers, strict=False)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
