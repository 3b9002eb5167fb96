"""Tables of a row a document that grow while a verb works, and that a rerun goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError


def weights_of(model: str) -> dict[str, str]:
    """SHA-256 of each file of a model's weights, by name.

    Raises:
        WeightsError: no such model.
    """
    from ..inference.answerers import Weights

    return Weights.of(model).sha256


def go_on(table: Path, asked: dict[str, Any], verb: str) -> bool:
    """Whether an earlier run left rows to go on with; says in a file beside them what is asked.

    An interrupted run may have left a line without its end, which is taken away.

    Raises:
        DataError: it is another's file, or something else was asked for.
    """
    from ..documents.opening import read_json
    from ..files import write_text
    from ..inference.extract import asked_path

    beside = asked_path(table)
    asked = json.loads(json.dumps(asked))
    if not table.exists():
        write_text(beside, json.dumps(asked, ensure_ascii=False, indent=1) + "\n")
        return False
    if not beside.exists():
        raise DataError(f"{table}: not written by {verb} ({beside.name} is missing): name another")
    before = read_json(beside)
    changed = [
        key for key in asked if not isinstance(before, dict) or before.get(key) != asked[key]
    ]
    if changed:
        raise DataError(
            f"{table}: its rows were written with other {changed[0].replace('_', ' ')}; name "
            "another --out, or remove it to start anew"
        )
    _drop_torn_line(table)
    return True


def json_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file."""
    return (json.loads(line) for line in lines if line.strip())


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
