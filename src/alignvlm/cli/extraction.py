"""The command line's ``extract``: documents in, a row of fields each out."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..errors import ConfigError, DataError, nearest
from .options import (
    DPI,
    MAX_NEW_TOKENS,
    MAX_PAGES,
    Dpi,
    MaxNewTokens,
    MaxPages,
    Model,
    PageRange,
    Password,
    note,
    number,
)

if TYPE_CHECKING:
    from ..inference.extract import Extractor, Schema

FORMATS = ("table", "csv", "jsonl")
WIDTH = 40
"""Longest cell of a table."""
Row = dict[str, Any]


def extract(
    model: Model,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="documents and folders")],
    fields: Annotated[
        str | None, typer.Option(help="names, perhaps with a kind: company,date:date,total:number")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="JSON Schema of a flat object: what to look for")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file to write: .csv or .jsonl; a rerun goes on")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="table, csv or jsonl; default: by the file's name, or table")
    ] = None,
    min_confidence: Annotated[float, number("leave a less sure value empty", min=0, max=1)] = 0.0,
    dates: Annotated[str | None, typer.Option(help="what 03/04/2018 is: dmy or mdy")] = None,
    decimal: Annotated[str | None, typer.Option(help="the mark in 1.234: . or ,")] = None,
    pages: PageRange = None,
    max_pages: MaxPages = MAX_PAGES,
    password: Password = None,
    dpi: Dpi = DPI,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    address: Annotated[str | None, typer.Option(hidden=True, help="not yet")] = None,
) -> None:
    """Write the fields of documents as a table: one row a document.

    A value's words stand on the page as they are: each comes with its page, box and confidence.
    """
    if address is not None:
        raise ConfigError(
            "extract runs on this machine: batch's workers ask one question and write its answer, "
            "not several fields from one prefill; give each machine files and an --out of its own"
        )
    asked = _schema(fields, schema)
    form = _format(format, out)
    day_first = {None: None, "dmy": True, "mdy": False}
    spelling = {"day_first": day_first[_one_of("--dates", dates, ("dmy", "mdy"))],
                "decimal": _one_of("--decimal", decimal, (".", ","))}  # fmt: skip
    from ..documents.page_images import Pages, list_files
    from ..inference.extract import field_questions

    questions = field_questions(asked)
    names = [one.name for one in questions]
    todo = list(dict.fromkeys(file for path in files for file in list_files(path)))
    reading = {"dpi": dpi, "pages": pages, "max_pages": max_pages}
    settings = {
        "fields": [asdict(one) for one in questions], **spelling, **reading,
        "min_confidence": min_confidence, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    done: set[str] = set()
    if out is not None:
        done = _go_on(out, form, names, {"model": _weights(model), **settings})
    _columns(names)  # refuses what a table cannot hold, before the model is loaded
    left = [file for file in todo if file not in done]
    extractor = _load(model, asked, spelling, min_confidence, max_new_tokens) if left else None
    rows, errors = [], 0
    with _writer(out, form, names) as write:
        for file in _shown(left):
            assert extractor is not None
            row = _row(extractor, Pages([file], password=password, **reading))
            errors += "error" in row
            rows.append(row)
            write(row)
    if rows and errors == len(rows) == len(todo):
        raise DataError(rows[0]["error"])
    if form == "table":
        typer.echo("\n".join(_table(rows, names)))
    elif out is not None:
        earlier = f", {len(todo) - len(left)} were there" if len(left) < len(todo) else ""
        typer.echo(f"{out}: {len(rows)} rows written ({errors} errors){earlier}")


def _schema(fields: str | None, schema: Path | None) -> Schema:
    if (fields is None) == (schema is None):
        raise ConfigError("extract needs either --fields NAME,NAME or --schema FILE.json")
    if fields is not None:
        return [name for name in fields.split(",") if name.strip()]
    from ..documents.opening import read_json

    assert schema is not None
    data = read_json(schema)
    if not isinstance(data, dict):
        raise DataError(f"{schema}: a JSON Schema is an object")
    return data


def _one_of(option: str, given: str | None, known: tuple[str, ...]) -> Any:
    if given is not None and given not in known:
        raise ConfigError(f"{option} is {' or '.join(known)}, not {given!r}")
    return given


def _format(given: str | None, out: Path | None) -> str:
    form = given or ("table" if out is None else out.suffix.removeprefix("."))
    if form not in FORMATS or (out is not None and form == "table"):
        named = [name for name in FORMATS if out is None or name != "table"]
        raise ConfigError(
            f"unknown format {form!r}{nearest(form, named)}: choose --format {' or '.join(named)}"
        )
    return form


def _weights(model: str) -> dict[str, str]:
    from ..files import file_sha256
    from ..weights.resolve import resolve

    return {f.name: file_sha256(f) for f in sorted(resolve(model).glob("*.safetensors"))}


def _load(
    model: str, schema: Schema, spelling: Row, min_confidence: float, max_new_tokens: int
) -> Extractor:
    from ..inference.ask import load_model
    from ..inference.confidence import calibration_of
    from ..inference.extract import Extractor
    from ..inference.values import Spelling
    from ..weights.resolve import resolve

    calibration = calibration_of(resolve(model))
    return Extractor(
        *load_model(model),
        schema,
        spelling=Spelling(**spelling),
        calibration=calibration,
        min_confidence=min_confidence,
        max_new_tokens=max_new_tokens,
    )


def _shown(files: list[str]) -> Iterator[str]:
    from tqdm import tqdm

    yield from tqdm(files, desc="extracting", unit="file", file=sys.stderr, leave=False,
                    disable=not sys.stderr.isatty())  # fmt: skip


def _row(extractor: Extractor, pages: Any) -> Row:
    """What one document says; a document that cannot be read costs its own row."""
    import torch

    (file,) = pages.files
    try:
        if pages.left_out:
            note(pages.left_out)
        found = extractor(pages)
    except (ConfigError, torch.AcceleratorError):
        raise  # would be the same for every document
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        text = " ".join(str(error).split())
        own = isinstance(error, DataError) and text
        return {"file": file, "error": text if own else f"{type(error).__name__}: {text}"}
    for page in found.unread:
        note(f"nothing was read on {file} page {page}")
    return {"file": file, "values": {name: asdict(own) for name, own in found.values.items()}}


def _go_on(out: Path, form: str, names: list[str], asked: Row) -> set[str]:
    """The documents that ``out`` has rows of; says in a file beside it what is asked.

    Raises:
        DataError: it is another's file, or other fields were asked for.
    """
    from ..documents.opening import read_json
    from ..files import write_text
    from ..inference.extract import asked_path

    beside = asked_path(out)
    asked = json.loads(json.dumps({**asked, "format": form}))
    if not out.exists():
        write_text(beside, json.dumps(asked, ensure_ascii=False, indent=1) + "\n")
        return set()
    if not beside.exists():
        raise DataError(f"{out}: not written by extract ({beside.name} is missing): name another")
    before = read_json(beside)
    changed = [
        key for key in asked if not isinstance(before, dict) or before.get(key) != asked[key]
    ]
    if changed:
        raise DataError(
            f"{out}: its rows were written with other {changed[0].replace('_', ' ')}; name another "
            "--out, or remove it to start anew"
        )
    _drop_torn_line(out)
    with open(out, encoding="utf-8", newline="") as file:
        if form == "jsonl":
            return {json.loads(line)["file"] for line in file if line.strip()}
        return {row["file"] for row in csv.DictReader(file)}


def _drop_torn_line(path: Path) -> None:
    """An interrupted run may have left a line without its end."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)


def _columns(names: list[str]) -> list[str]:
    """Of a CSV.

    Raises:
        ConfigError: a field is called as another column.
    """
    from ..inference.extract import DETAILS

    details = [f"{name}_{detail}" for name in names for detail in DETAILS]
    columns = ["file", *names, *details, "error"]
    for name in names:
        if columns.count(name) > 1:
            raise ConfigError(f"field {name!r} is called as a column of the table: rename it")
    return columns


@contextmanager
def _writer(out: Path | None, form: str, names: list[str]) -> Iterator[Callable[[Row], None]]:
    """Writes a row at once, so that an interrupted run loses none."""
    if form == "table":
        yield lambda row: None
        return
    with ExitStack() as opened:
        file = sys.stdout
        if out is not None:
            file = opened.enter_context(open(out, "a", encoding="utf-8", newline=""))
        if form == "csv" and (out is None or not out.stat().st_size):
            csv.writer(file, lineterminator="\n").writerow(_columns(names))

        def write(row: Row) -> None:
            _write(row, form, names, file)
            file.flush()

        yield write


def _write(row: Row, form: str, names: list[str], file: TextIO) -> None:
    from ..inference.extract import DETAILS

    if form == "jsonl":
        file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
        return
    flat: Row = {"file": row["file"], "error": row.get("error", "")}
    for name, own in row.get("values", {}).items():
        flat[name] = own["value"]
        boxes = "; ".join(" ".join(f"{edge:.1f}" for edge in box) for box in own["boxes"])
        shown = {**own, "boxes": boxes, "confidence": f"{own['confidence']:.4f}"}
        flat |= {f"{name}_{detail}": shown[detail] for detail in DETAILS}
    csv.DictWriter(file, _columns(names), lineterminator="\n").writerow(flat)


def _plain(value: Any) -> Any:
    """A number or a date for JSON."""
    return value.isoformat() if hasattr(value, "isoformat") else float(value)


def _table(rows: list[Row], names: list[str]) -> list[str]:
    """Values with their confidence in columns; below it, why some are missing."""
    cells, notes = [["file", *names]], []
    for row in rows:
        values = row.get("values", {})
        cells.append([row["file"], *(_cell(values.get(name)) for name in names)])
        notes += [f"{row['file']}: {row['error']}"] if "error" in row else []
        notes += [f"{row['file']}: {n}: {v['note']}" for n, v in values.items() if v["note"]]
    cells = [[cell if len(cell) <= WIDTH else f"{cell[: WIDTH - 1]}…" for cell in row]
             for row in cells]  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells]
    return [*lines, *notes]


def _cell(value: Row | None) -> str:
    if value is None or value["value"] is None:
        return "-"
    return f"{value['value']} ({value['confidence']:.2f})"
