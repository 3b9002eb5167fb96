"""The command line's ``read``: documents in, what a model reads on them out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..errors import ConfigError, DataError, nearest
from .growing_table import go_on, json_rows, weights_of
from .options import DPI, Dpi, Json, Model, PageRange, Password, emit, note, note_left_out
from .progress import lines_bar
from .status_line import Doing

if TYPE_CHECKING:
    from ..documents.page_images import Pages
    from ..inference.page_files import PageFormat, ReadDocument
    from ..inference.page_reader import PageReader

Row = dict[str, Any]
INDEX = "read.jsonl"
"""In a folder of results: a row a document, which a rerun goes on with."""


def read(
    model: Model,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="documents and folders")],
    out: Annotated[
        Path | None,
        typer.Option(help="file (.txt, .md, .json, .hocr), or folder, which a rerun goes on with"),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="text, markdown, json or hocr; default: by the file's name, or text"),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="JSON: also each line's tokens of the language model")
    ] = False,
    pages: PageRange = None,
    max_pages: Annotated[
        int | None, typer.Option(min=1, help="read so many pages of each document; default: all")
    ] = None,
    password: Password = None,
    dpi: Dpi = DPI,
    json_: Json = False,
) -> None:
    """Write what a model reads on documents: text, Markdown, JSON or hOCR; no language model runs.

    MODEL may also be `reader`, the page encoder by itself.
    """
    form = _format(format, out, json_)
    if tokens and form != "json":
        raise ConfigError(f"--tokens is for --format json, not {form}")
    from ..documents.page_images import Pages, list_files
    from ..inference.page_files import PAGE_FORMATS

    todo = list(dict.fromkeys(file for path in files for file in list_files(path)))
    settings = {"tokens": tokens, "dpi": dpi, "pages": pages, "max_pages": max_pages}

    def pages_of(file: str) -> Pages:
        return Pages([file], dpi=dpi, pages=pages, max_pages=max_pages, password=password)

    if out is not None and _is_folder(out):
        sink: _Folder | _Stream = _Folder(out, PAGE_FORMATS[form], files)
        left = sink.left(todo, lambda: {"model": weights_of(model), "format": form, **settings})
    else:
        sink, left = _Stream(out, PAGE_FORMATS[form], json_), todo
    rows = _rows(model, left, pages_of, sink, tokens, len(left) == len(todo)) if left else []
    errors = [row["error"] for row in rows if "error" in row]
    if out is not None:
        there = len(todo) - len(left)
        counts = {"out": str(out), "documents": len(rows), "errors": len(errors)}
        earlier = f", {there} were there" if there else ""
        text = f"{out}: {len(rows)} documents read ({len(errors)} errors){earlier}"
        emit(json_, {**counts, "already_there": there}, text)
    elif json_:
        emit(True, {"documents": rows}, "")


def _format(given: str | None, out: Path | None, as_json: bool) -> str:
    """The name of a format of ``PAGE_FORMATS``."""
    from ..inference.page_files import PAGE_FORMATS, SUFFIXES

    by_name = None
    if out is not None and not _is_folder(out):
        by_name = SUFFIXES.get(out.suffix.lower())
        if by_name is None and given is None:
            known = ", ".join(SUFFIXES)
            raise ConfigError(
                f"{out}: no format is called {out.suffix!r}: name {known}, a --format, or a folder "
                "that is there"
            )
    form = given or by_name or ("json" if as_json and out is None else "text")
    if form not in PAGE_FORMATS:
        known = " or ".join(PAGE_FORMATS)
        raise ConfigError(
            f"unknown format {form!r}{nearest(form, PAGE_FORMATS)}: choose --format {known}"
        )
    if as_json and out is None and form != "json":
        raise ConfigError(f"--json prints one line, --format {form} a text: choose one")
    return form


def _is_folder(out: Path) -> bool:
    """Whether ``--out`` names a folder: one that is there, or a new name without a dot."""
    return out.is_dir() or not (out.suffix or out.exists())


def _name(file: str) -> str:
    """What a document is called."""
    from ..documents.page_images import STDIN, STDIN_NAME

    return STDIN_NAME if file == STDIN else file


def _rows(
    model: str,
    files: list[str],
    pages_of: Callable[[str], Pages],
    sink: _Folder | _Stream,
    tokens: bool,
    alone: bool,
) -> list[Row]:
    """A row of each document, which is written by then; errors are also told on stderr.

    Args:
        alone: no other documents were read before.

    Raises:
        DataError: none could be read.
    """
    from ..batch.parts import own_row
    from ..inference.page_files import ReadDocument
    from ..inference.page_reader import PageReader

    rows = []
    with Doing(f"loading {model}"):
        reader = PageReader.load(model, tokens=tokens)
    with sink.opened() as write:
        for number, file in enumerate(files, start=1):
            count = f"{number}/{len(files)} " if len(files) > 1 else ""

            def make(file: str = file, number: int = number, count: str = count) -> Row:
                found = list(_read(reader, pages_of(file), count))
                return {"document": ReadDocument(_name(file), found, number, len(files) == 1)}

            row = own_row(_name(file), make)
            if "error" in row and len(files) > 1:
                note(row["error"])
            rows.append(write(row))
        if alone and all("error" in row for row in rows):
            raise DataError(rows[0]["error"])
    return rows


def _read(reader: PageReader, pages: Pages, count: str) -> Iterator[Any]:
    """The pages of a document; those that are left out or empty are told on stderr."""
    pages.pdf_pixels = reader.image_processor.useful_pixels()
    note_left_out(pages)
    several = len(pages) > 1
    for page in pages:
        which = f" page {page.page}" if several else ""
        with lines_bar(reader.watch, f"{count}{Path(page.file).name}{which}"):
            found = reader.read(page.image, page.page, page.scale)
        if not found.lines:
            note(f"nothing was read on {page.file} page {page.page}")
        yield found


class _Stream:
    """Documents one after the other in a file, which is there when all are, or on standard output.

    Args:
        collects: keep documents instead, as data, where no file is named.
    """

    def __init__(self, out: Path | None, form: PageFormat, collects: bool) -> None:
        self.out, self.form, self.written = out, form, 0
        self.collects = collects and out is None

    @contextmanager
    def opened(self) -> Iterator[Callable[[Row], Row]]:
        """What takes a row with its document, and gives it back without."""
        from ..files import replacing

        with ExitStack() as stack:
            file = sys.stdout
            if self.out is not None:
                partial = stack.enter_context(replacing(self.out))
                file = stack.enter_context(open(partial, "w", encoding="utf-8"))
            file.write("" if self.collects else self.form.head)
            yield lambda row: self._write(row, file)
            file.write("" if self.collects else self.form.tail)

    def _write(self, row: Row, file: TextIO) -> Row:
        from ..inference.page_text import as_data

        document: ReadDocument | None = row.pop("document", None)
        if self.collects:
            return row if document is None else as_data(document.file, document.pages)
        if document is not None:
            file.write((self.form.between if self.written else "") + self.form.document(document))
            self.written += 1
        elif self.form.suffix == ".json":
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        return row


class _Folder:
    """A file a document, and an index of them.

    Args:
        given: files and folders as they were named: what lies in a folder keeps its place.

    Raises:
        DataError: ``out`` is a file.
    """

    def __init__(self, out: Path, form: PageFormat, given: list[str]) -> None:
        self.out, self.form, self.index = out, form, out / INDEX
        self.folders = [Path(path) for path in given if Path(path).is_dir()]
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is no folder; name another --out")

    def left(self, files: list[str], asked: Callable[[], Row]) -> list[str]:
        """Documents that have no row yet.

        Raises:
            DataError: two would be written to one file, or an earlier run was asked for something
                else.
        """
        names: dict[Path, str] = {}
        for file in files:
            other = names.setdefault(self.path_of(file), file)
            if other != file:
                raise DataError(
                    f"{other} and {file} would both be {self.path_of(file)}: read them to two "
                    "folders"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        if not go_on(self.index, asked(), "read"):
            return files
        with open(self.index, encoding="utf-8") as rows:
            done = {row["file"] for row in json_rows(rows)}
        return [file for file in files if _name(file) not in done]

    def path_of(self, file: str) -> Path:
        """Where a document's result goes: its own name, and a suffix."""
        path = Path(_name(file))
        inside = next((f for f in self.folders if path.is_relative_to(f)), path.parent)
        own = path.relative_to(inside)
        return self.out / own.with_name(own.name + self.form.suffix)

    @contextmanager
    def opened(self) -> Iterator[Callable[[Row], Row]]:
        """What writes a document's file, and then its row."""
        from ..files import write_text

        with open(self.index, "a", encoding="utf-8") as index:

            def write(row: Row) -> Row:
                document: ReadDocument | None = row.pop("document", None)
                if document is not None:
                    path = self.path_of(document.file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_text(path, self.form.whole(document._replace(number=1, alone=True)))
                    row = {**row, "out": os.fspath(path.relative_to(self.out)),
                           "pages": len(document.pages)}  # fmt: skip
                index.write(json.dumps(row, ensure_ascii=False) + "\n")
                index.flush()
                return row

            yield write
