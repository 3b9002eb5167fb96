"""Rows of other people's tables as objects that ``records.validate_record`` reads.

Roles of columns: ``image``, ``question`` and ``answer`` (or ``answer_lines``, a list of which all
are asked for); or ``images`` (or ``image``, ``pdf``) and ``messages`` or ``turns``. ``image_name``
names the picture of a row whose own ``image`` is empty.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..documents.opening import open_document
from ..documents.pictures import FORMATS
from ..errors import DataError, nearest
from ..processing.image_processor import MAX_PIXELS
from .chat_forms import image_list, paired, turns_to_messages

ROLES = (
    "id", "image", "images", "pdf", "image_name", "question", "answer", "answer_lines", "messages",
    "turns", "words", "source",
)  # fmt: skip
PICTURES = ("image", "images", "pdf")
CHAT_NAMES = {"messages": "conversations", "turns": "texts"}
"""What other people call their conversations."""
PDF_DPI = 144
Find = Callable[[str], Any]
"""Gives the file, or ``{"bytes"}``, of the picture that a row names; raises DataError."""


def column_map(
    columns: Mapping[str, str] | None,
    present: Sequence[str] | None,
    *,
    where: str,
    given: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> dict[str, str]:
    """Check a mapping from our names to a table's columns; ``None`` looks for our own names.

    Args:
        given: roles that need no column.
        optional: roles that are left out where their column is missing.

    Raises:
        DataError: an unknown name on either side, or columns that do not make a record.
    """
    if columns is None:
        columns = {key: key for key in ROLES if present is None or key in present}
        if "messages" not in columns:
            columns |= {role: name for role, name in CHAT_NAMES.items() if name in (present or ())}
    kept = {}
    for key, column in columns.items():
        if key not in ROLES:
            raise DataError(f"{where}: unknown column role {key!r}{nearest(key, ROLES)}")
        if present is None or column in present:
            kept[key] = column
        elif key not in optional:
            has = f"it has {', '.join(present)}"
            raise DataError(f"{where}: no column {column!r}{nearest(column, present)}; {has}")
    pictured = any(key in columns for key in PICTURES)
    chat = pictured and ("messages" in kept or "turns" in kept)
    if not chat and not {"image", "question"} <= {*columns, *given}:
        has = ", ".join(present) if present else "columns of unknown names"
        raise DataError(
            f"{where}: map columns to image and question (and answer), or to images and messages; "
            f"it has {has}"
        )
    keys = (
        (*PICTURES, "messages", "turns")
        if chat
        else ("image", "question", "answer", "answer_lines")
    )
    return {k: kept[k] for k in ("id", "words", "source", "image_name", *keys) if k in kept}


def row_to_object(
    row: Mapping[str, Any], columns: Mapping[str, str], *, where: str, find: Find | None = None
) -> dict[str, Any]:
    """Turn a table's row into an object for :func:`validate_record`.

    An image may be decoded, a path, or undecoded ``{"bytes", "path"}``. Of several accepted answers
    to one question the first is taken; a list of questions is a conversation.

    Args:
        find: looks up the pictures that the row names by path.

    Raises:
        DataError: an image cannot be found or decoded; starts with ``where``.
    """
    obj = {key: row.get(column) for key, column in columns.items()}
    if (lines := obj.pop("answer_lines", None)) is not None:
        obj["answer"] = "\n".join(lines)
    pictures = _pictures(obj, where, find)
    if "turns" in obj:
        obj["messages"] = turns_to_messages(obj.pop("turns"))
    elif isinstance(obj.get("question"), list):
        answers = obj.pop("answer", None)
        answers = answers if isinstance(answers, list) else [answers]
        obj["messages"] = paired(obj.pop("question"), answers)
    if "messages" in obj:
        obj["images"] = pictures
        return obj
    if isinstance(obj.get("answer"), list) and obj["answer"]:
        obj["answer"] = obj["answer"][0]
    obj["image"] = pictures[0] if pictures else None
    return obj


def image_paths(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    """Paths of the pictures that a row names; none where it holds them itself."""
    obj = {key: row.get(column) for key, column in columns.items()}
    return [value for value in _values(obj, named=True) if isinstance(value, str)]


def _values(obj: Mapping[str, Any], *, named: bool) -> list[Any]:
    """Pictures of an object of roles; if ``named``, a row without one may name it.

    Conversations need no picture, so they do not name one.
    """
    values = [value for key in ("image", "images") for value in image_list(obj.get(key))]
    if values or not named or "messages" in obj or "turns" in obj:
        return values
    return image_list(obj.get("image_name") or obj.get("id"))


def _pictures(obj: dict[str, Any], where: str, find: Find | None) -> list[Any]:
    """Take the pictures out of an object of roles."""
    values = _values(obj, named=find is not None)
    pdf = obj.get("pdf")
    for key in (*PICTURES, "image_name"):
        obj.pop(key, None)
    if pdf is not None and not values:
        return _pages(pdf, where)
    return [_picture(value, where, find) for value in values]


def _picture(value: Any, where: str, find: Find | None) -> Any:
    if isinstance(value, str) and find is not None:
        try:
            value = find(value)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    if not isinstance(value, Mapping):
        return value
    if value.get("bytes") is None:
        return value.get("path")
    try:
        return Image.open(io.BytesIO(value["bytes"]), formats=formats())
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the image bytes cannot be decoded: {error}") from error


def formats() -> list[str]:
    """Formats that are opened, of those that Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _pages(pdf: Any, where: str) -> list[Image.Image]:
    """All pages of a PDF, given as bytes, as a path, or as both."""
    if isinstance(pdf, Mapping):
        pdf = pdf.get("bytes") or pdf.get("path")
    data = pdf if isinstance(pdf, bytes) else None
    name = Path(where) if data is not None else Path(str(pdf))
    with open_document(name, data=data) as document:
        return [document.render(index, PDF_DPI, MAX_PIXELS) for index in range(document.count)]
