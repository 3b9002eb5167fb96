"""Where the entries of a JSON list begin and end in its file."""

from __future__ import annotations

import json
import re
from array import array
from pathlib import Path

from ..errors import DataError

BOM = b"\xef\xbb\xbf"
BETWEEN = re.compile(r"[\s,]*")


def is_json_list(path: Path) -> bool:
    """Whether a file is one JSON list, by its first character."""
    with open(path, "rb") as file:
        return file.read(256).removeprefix(BOM).lstrip()[:1] == b"["


def list_entries(path: Path) -> tuple[array[int], array[int]]:
    """First byte of each entry, and the byte after it.

    The file is in memory meanwhile; its entries are not.

    Raises:
        DataError: not UTF-8, or not a JSON list; names the entry.
    """
    data = path.read_bytes()
    begins, ends = array("Q"), array("Q")
    skipped = len(BOM) if data.startswith(BOM) else 0
    try:
        text = data[skipped:].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
    decoder = json.JSONDecoder()
    place, byte = text.index("[") + 1, skipped  # of characters and of bytes; not every one is both
    byte += len(text[:place].encode())
    while True:
        start = BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if text[start : start + 1] == "]":
            return begins, ends
        try:
            _, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}:{len(begins) + 1}: not valid JSON: {error}") from error
        begins.append(byte + len(text[place:start].encode()))
        ends.append(begins[-1] + len(text[start:end].encode()))
        place, byte = end, ends[-1]
