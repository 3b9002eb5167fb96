"""The rows of a batch on disk: parts as workers write them, and the results they become.

``OUT/parts/*.jsonl`` holds finished rows. A part appears whole, under a name that follows from what
is in it, so a worker that does its work a second time writes the same part again. ``OUT/job.json``
says which model answers, and ``OUT/results.jsonl`` appears when every row is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..errors import ConfigError, DataError
from ..files import replacing
from ..inference.answerers import Weights
from .requests import Unit

FORMAT = 1
"""Of ``job.json`` and the parts."""
MERGED = "merged.jsonl"
LOCK = ".lock"
Row = dict[str, Any]
Rows = dict[tuple[str, str], Row]
"""Finished rows by id and request."""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def as_lines(rows: Iterable[Row]) -> str:
    """JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def part_name(units: Sequence[Unit]) -> str:
    """File name of the part that answers these units."""
    text = "\n".join(f"{unit.id}\t{unit.request}" for unit in units)
    return hashlib.sha256(text.encode()).hexdigest()[:24] + ".jsonl"


@contextmanager
def claimed(out: Path, model: str | os.PathLike[str], run: str) -> Iterator[None]:
    """Within, a batch's folder, which is made unless it is there, is this run's alone.

    Args:
        model: whose answers it holds.
        run: what another one is called.

    Raises:
        DataError: another run is writing there, another model has, or ``out`` is something else.
        WeightsError: no such model.
    """
    weights = Weights.of(model)
    _make_folder(out)
    try:
        with FileLock(out / LOCK, timeout=0):
            _claim(out, weights)
            yield
    except Timeout:
        raise DataError(f"{out}: another {run} is writing there") from None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create {out}: {error.strerror}") from None
    names = {path.name for path in out.iterdir()}
    if names - {LOCK} and "job.json" not in names:
        raise DataError(f"{out} exists and is not a batch's folder; choose another --out")


def _claim(out: Path, weights: Weights) -> None:
    """Note which model answers, or check that it is the same one."""
    job = out / "job.json"
    if not job.is_file():
        noted = {"format": FORMAT, "model": weights.to_dict()}
        write_whole(job, json.dumps(noted, indent=1) + "\n")
    try:
        found = json.loads(job.read_text(encoding="utf-8"))
        form, model = found["format"], found["model"]
        same = model["sha256"] == weights.sha256
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{job} is damaged; choose another --out") from None
    if form != FORMAT:
        raise DataError(f"{out} was written by another version; choose another --out")
    if not same:
        raise DataError(
            f"{out} holds answers of another model, {model.get('reference')!r}; choose another "
            "--out, or remove the folder"
        )


def read_parts(out: Path) -> Rows:
    """Every finished row of a batch's folder.

    Raises:
        DataError: a part is damaged.
    """
    rows: Rows = {}
    for part in sorted((out / "parts").glob("*.jsonl")):
        with open(part, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    rows[row["id"], row["request"]] = row
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{part}:{number} is damaged; remove the file and run the command again"
                    ) from None
    return rows


def error_row(unit: Unit, error: str, **timings: Any) -> Row:
    """The row of a unit that has no answer; ``error`` becomes one line."""
    return {**_head(unit), "error": " ".join(error.split()) or "unknown error", **timings}


def said(error: Exception) -> str:
    """What an error row says."""
    text = str(error).strip()
    return text if isinstance(error, DataError) and text else f"{type(error).__name__}: {text}"


def own_row(file: str, make: Callable[[], Row]) -> Row:
    """The row of a document: ``file`` and what ``make`` gives, or ``file`` and ``error``.

    A document that cannot be read costs its own row; what would be the same for every document is
    raised.
    """
    try:
        return {"file": file, **make()}
    except (ConfigError, torch.AcceleratorError):
        raise
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        return {"file": file, "error": " ".join(said(error).split())}


def answer_row(unit: Unit, answer: str, **details: Any) -> Row:
    """The row of an answered unit."""
    return {**_head(unit), "answer": answer, **details}


def _head(unit: Unit) -> Row:
    return {
        "id": unit.id,
        "request": unit.request,
        "file": unit.file,
        "page": unit.page,
        # a record that could not be read has no question
        "question": unit.question if unit.paths else None,
    }


def keep_only(out: Path, rows: Rows) -> None:
    """One part with these rows in place of all parts."""
    names = [part.name for part in (out / "parts").iterdir()]
    write_whole(out / "parts" / MERGED, as_lines(rows.values()))
    for name in names:
        if name != MERGED:
            (out / "parts" / name).unlink(missing_ok=True)


def merge(out: Path, units: Sequence[Unit]) -> list[Row]:
    """Write ``results.jsonl`` in the order of ``units``, and one part in place of many.

    Rows of requests that are not asked any more stay in the parts.

    Raises:
        DataError: a row is missing, or a part is damaged.
    """
    rows = read_parts(out)
    missing = [unit.id for unit in units if (unit.id, unit.request) not in rows]
    if missing:
        raise DataError(
            f"{out}: {len(missing)} rows are missing, {missing[0]!r} first; run the same command "
            "again"
        )
    if [part.name for part in (out / "parts").iterdir()] != [MERGED]:
        keep_only(out, rows)
    found = [dict(rows[unit.id, unit.request]) for unit in units]
    for row in found:
        del row["request"]
    results, text = out / "results.jsonl", as_lines(found)
    if not results.is_file() or results.read_text(encoding="utf-8") != text:
        write_whole(results, text)
    return found
