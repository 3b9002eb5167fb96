"""The command line's ``extract``: documents in, a row of fields each out."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..errors import ConfigError, DataError, nearest
from .growing_table import go_on, json_rows, weights_of
from .options import (
    DPI,
    MAX_NEW_TOKENS,
    MAX_PAGES,
    Actors,
    Address,
    Dpi,
    Json,
    MaxNewTokens,
    MaxPages,
    Model,
    NumGpus,
    PageRange,
    Password,
    emit,
    note,
    number,
    shows_progress,
)
from .status_line import Doing, reading

if TYPE_CHECKING:
    from ..batch.documents import Extracting
    from ..batch.pool import Pool
    from ..inference.field_schema import Schema

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
    address: Address = None,
    actors: Actors = None,
    num_gpus: NumGpus = None,
    json_: Json = False,
) -> None:
    """Write the fields of documents as a table: one row a document.

    A value's words stand on the page as they are: each comes with its page, box and confidence.
    """
    asked = _schema(fields, schema)
    form = _format(format, out, json_)
    if address is None and (actors or num_gpus):
        raise ConfigError("--actors and --num-gpus are for --address; without it one model works")
    if address is not None and out is None:
        raise ConfigError("--address needs --out FILE, where every machine of the cluster sees it")
    day_first = {None: None, "dmy": True, "mdy": False}
    spelling = {"day_first": day_first[_one_of("--dates", dates, ("dmy", "mdy"))],
                "decimal": _one_of("--decimal", decimal, (".", ","))}  # fmt: skip
    from ..batch.documents import Extracting
    from ..batch.pool import Pool
    from ..documents.page_images import list_files

    extracting = Extracting(
        asked, spelling, min_confidence, max_new_tokens, dpi, pages, max_pages, password
    )
    pool = None if address is None else Pool(address, actors, num_gpus, batch_size=1)
    todo = list(dict.fromkeys(file for path in files for file in list_files(path)))
    table = _Table(out, form, extracting)
    left = table.left(todo, model)
    rows = list(_rows(model, left, table, pool)) if left else []
    errors = sum("error" in row for row in rows)
    if rows and errors == len(rows) == len(todo):
        raise DataError(rows[0]["error"])
    if out is not None:
        there = len(todo) - len(left)
        earlier = f", {there} were there" if there else ""
        counts = {"out": str(out), "rows": len(rows), "errors": errors, "already_there": there}
        emit(json_, counts, f"{out}: {len(rows)} rows written ({errors} errors){earlier}")
    elif json_:
        emit(True, {"rows": json.loads(json.dumps(rows, default=_plain))}, "")
    elif form == "table":
        typer.echo("\n".join(_lines(rows, table.names)))


def _rows(model: str, files: list[str], table: _Table, pool: Pool | None) -> Iterator[Row]:
    """Rows of documents, each written by the time it is given."""
    from ..batch.documents import document_row, extract_rows

    extracting, work = table.extracting, table.work
    made = table.collected(files)  # by workers of a run that was killed
    rest = [file for file in files if file not in made]
    shown = shows_progress()
    if pool is not None and rest:
        assert work is not None
        rows = extract_rows(model, rest, work, extracting, pool, progress=shown)
        made |= zip(rest, rows, strict=True)
        rest = []
    with Doing(f"loading {model}"):
        extractor = extracting.load(model) if rest else None
    with table.writer() as write:
        alone = len(files) == 1
        for file in _shown(files, shown and not alone):
            if file in made:
                row = made[file]
            else:
                assert extractor is not None
                with reading(extractor.model) if alone else nullcontext():
                    row = document_row(extractor, extracting.pages_of(file), file)
            for text in row.pop("notes", ()):
                note(text)
            write(row)
            yield row
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)


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


def _format(given: str | None, out: Path | None, as_json: bool) -> str:
    form = given or ("table" if out is None else out.suffix.removeprefix("."))
    if form not in FORMATS or (out is not None and form == "table"):
        named = [name for name in FORMATS if out is None or name != "table"]
        raise ConfigError(
            f"unknown format {form!r}{nearest(form, named)}: choose --format {' or '.join(named)}"
        )
    if as_json and out is None and form != "table":
        raise ConfigError(f"--json prints one line, --format {form} one a document: choose one")
    return form


def _shown(files: list[str], shown: bool) -> Iterator[str]:
    from tqdm import tqdm

    yield from tqdm(files, desc="extracting", unit="file", file=sys.stderr, leave=False,
                    disable=not shown)  # fmt: skip


class _Table:
    """Where rows go: a file that grows, or standard output."""

    def __init__(self, out: Path | None, form: str, extracting: Extracting) -> None:
        from ..inference.field_schema import field_questions

        self.out, self.form, self.extracting = out, form, extracting
        self.questions = field_questions(extracting.schema)
        self.names = [one.name for one in self.questions]
        self.columns = _columns(self.names)
        self.work = None if out is None else out.with_name(f"{out.name}.workers")

    def left(self, files: list[str], model: str) -> list[str]:
        """Documents that have no row yet; says in a file beside the rows what is asked.

        Raises:
            DataError: the file is another's, or other fields were asked for.
        """
        if self.out is None:
            return files
        settings = self.extracting.settings()
        spelling = settings.pop("spelling")
        del settings["schema"]
        asked = {
            "model": weights_of(model),
            "fields": [asdict(one) for one in self.questions],
            **spelling,
            **settings,
        }
        if not go_on(self.out, {**asked, "format": self.form}, "extract"):
            return files
        with open(self.out, encoding="utf-8", newline="") as file:
            rows = json_rows(file) if self.form == "jsonl" else csv.DictReader(file)
            done = {row["file"] for row in rows}
        return [file for file in files if file not in done]

    def collected(self, files: list[str]) -> dict[str, Row]:
        """Rows that workers left, of documents of this name."""
        from ..batch.documents import earlier_rows

        if self.work is None or not self.work.is_dir():
            return {}
        return earlier_rows(files, self.work, self.extracting)

    @contextmanager
    def writer(self) -> Iterator[Callable[[Row], None]]:
        """Writes a row at once, so that an interrupted run loses none."""
        if self.form == "table":
            yield lambda row: None
            return
        with ExitStack() as opened:
            file = sys.stdout
            if self.out is not None:
                file = opened.enter_context(open(self.out, "a", encoding="utf-8", newline=""))
            if self.form == "csv" and (self.out is None or not self.out.stat().st_size):
                csv.writer(file, lineterminator="\n").writerow(self.columns)

            def write(row: Row) -> None:
                _write(row, self.form, self.columns, file)
                file.flush()

            yield write


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


def _write(row: Row, form: str, columns: list[str], file: TextIO) -> None:
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
    csv.DictWriter(file, columns, lineterminator="\n").writerow(flat)


def _plain(value: Any) -> Any:
    """A number or a date for JSON."""
    return value.isoformat() if hasattr(value, "isoformat") else float(value)


def _lines(rows: list[Row], names: list[str]) -> list[str]:
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
