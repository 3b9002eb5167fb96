"""Rows of other people's tables as objects that ``records.validate_record`` reads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..errors import DataError, nearest


def column_map(
    columns: Mapping[str, str] | None,
    present: Sequence[str] | None,
    *,
    where: str,
    given: Sequence[str] = (),
) -> dict[str, str]:
    """Check a mapping from our names to a table's columns; ``None`` looks for our own names.

    ``given``: roles that need no column.

    Raises:
        DataError: an unknown name on either side, or columns that do not make a record.
    """
    known = ("id", "image", "images", "question", "answer", "messages", "words", "source")
    if columns is None:
        columns = {key: key for key in known if present is None or key in present}
    for key, column in columns.items():
        if key not in known:
            raise DataError(f"{where}: unknown column role {key!r}{nearest(key, known)}")
        if present is not None and column not in present:
            has = f"it has {', '.join(present)}"
            raise DataError(f"{where}: no column {column!r}{nearest(column, present)}; {has}")
    full = "messages" in columns and ("images" in columns or "image" in columns)
    if not full and not {"image", "question"} <= {*columns, *given}:
        has = ", ".join(present) if present else "columns of unknown names"
        raise DataError(
            f"{where}: map columns to image and question (and answer), or to images and messages; "
            f"it has {has}"
        )
    keys = ("image", "images", "messages") if full else ("image", "question", "answer")
    return {key: columns[key] for key in ("id", "words", "source", *keys) if key in columns}


def row_to_object(
    row: Mapping[str, Any], columns: Mapping[str, str], *, where: str
) -> dict[str, Any]:
    """Turn a table's row into an object for :func:`validate_record`.

    An image may be decoded, a path, or undecoded ``{"bytes", "path"}``. Of several accepted answers
    the first is taken.
    """
    obj = {key: row.get(column) for key, column in columns.items()}
    if "messages" in obj:
        image = obj.pop("image", None)
        images = obj.get("images")
        images = ([] if image is None else [image]) if images is None else images
        obj["images"] = [_picture(image, where) for image in images]
    else:
        obj["image"] = _picture(obj["image"], where)
        if isinstance(obj.get("answer"), list) and obj["answer"]:
            obj["answer"] = obj["answer"][0]
    return obj


def _picture(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.get("bytes") is None:
        return value.get("path")
    try:
        return Image.open(io.BytesIO(value["bytes"]))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the image bytes cannot be decoded: {error}") from error
