"""Kleister Charity (Stanisławek et al., 2021): eight fields of annual reports of UK charities.

Read from any of the forms it is published in, found below the folder the user names:

- the official repository (applicaai/kleister-charity): ``{train,dev-0,test-A}/expected.tsv`` with
  ``in.tsv.xz`` or ``in.tsv`` beside it (its first column names the PDFs) and ``documents/``;
- the hub's copy of dev-0 (DeepRead/kleister-charity-dev0): ``expected.tsv``, ``documents.txt``
  and ``pdfs/`` in the folder itself;
- the DUE benchmark (Borchmann et al., 2021): ``{train,dev,test}/document.jsonl`` and ``pdfs/`` or
  ``documents/`` in the split's folder or beside it.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ...documents.opening import read_text
from ...errors import DataError
from .benchmark import BenchmarkRow, unique
from .forms import PDFBenchmark

Fields = dict[str, tuple[str, ...]]


class KLCSource(PDFBenchmark):
    """A split of Kleister Charity; see the module's text for the layouts.

    Values are as the labels have them: dates ``YYYY-MM-DD``, amounts ``1234567.00``, the
    underscores of ``expected.tsv`` as the spaces they stand for. A field with several values
    accepts any of them.
    """

    key = "klc"
    splits = ("train", "dev", "test")
    folders: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train",),
        "dev": ("dev-0", "dev", "validation", "."),
        "test": ("test-A", "test"),
    }
    questions: ClassVar[dict[str, str]] = {
        "address__post_town": "What is the post town of the charity's address?",
        "address__postcode": "What is the postcode of the charity's address?",
        "address__street_line": "What is the street line of the charity's address?",
        "charity_name": "What is the name of the charity?",
        "charity_number": "What is the registered number of the charity?",
        "income_annually_in_british_pounds": "What is the annual income in British pounds, "
        "written like 1234567.00?",
        "report_date": "What is the reporting date, written like 2016-03-31?",
        "spending_annually_in_british_pounds": "What is the annual spending in British pounds, "
        "written like 1234567.00?",
    }

    def path(self, row: BenchmarkRow) -> Path:
        return self._pdfs / row.key

    def _read(self) -> Iterator[BenchmarkRow]:
        names = ("expected.tsv", "document.jsonl")
        folders = [self.root / name for name in self.folders[self.split]]
        found = [folder / n for folder in folders for n in names if (folder / n).is_file()]
        if not found:
            tried = ", ".join(str(folder.relative_to(self.root)) for folder in folders)
            raise DataError(f"{self.root}: klc: no {' or '.join(names)} in {tried}")
        path = found[0]
        self._labels(path, self._counterparts(path.name))
        self._pdfs = self._pdf_folder(path.parent)
        read = _read_expected if path.name == "expected.tsv" else _read_due
        ids: dict[str, int] = {}
        for number, name, fields in read(path):
            where = f"{path}:{number}"
            unique(name, ids, path, number)
            if not (self._pdfs / name).is_file():
                raise DataError(f"{where}: PDF not found: {self._pdfs / name}")
            for field in fields:
                if field not in self.questions:
                    raise DataError(f"{where}: unknown field {field!r}")
            for field, question in self.questions.items():
                answers = fields.get(field, ())
                if answers or self.ask_empty:
                    yield BenchmarkRow(f"{Path(name).stem}/{field}", name, question, answers, where)

    def _counterparts(self, name: str) -> dict[str, Path]:
        """Label files of the splits, as far as there are any."""
        return {
            split: self.root / folder / name
            for split, folders in self.folders.items()
            for folder in folders
            if (self.root / folder / name).is_file()
        }

    def _pdf_folder(self, folder: Path) -> Path:
        for candidate in (folder, self.root):
            for name in ("documents", "pdfs"):
                if (candidate / name).is_dir():
                    return candidate / name
        raise DataError(f"{self.root}: klc: no folder documents or pdfs with the PDFs")


def _read_expected(path: Path) -> Iterator[tuple[int, str, Fields]]:
    """Yield row, file name and fields: ``key=value`` pairs, underscores for spaces."""
    names = _document_names(path.parent)
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    if len(lines) != len(names):
        raise DataError(f"{path}: {len(lines)} rows, but there are {len(names)} documents")
    for number, (name, line) in enumerate(zip(names, lines, strict=True), start=1):
        fields: Fields = {}
        for pair in line.split():
            key, equals, value = pair.partition("=")
            if not equals or not value:
                raise DataError(f"{path}:{number}: {pair!r:.60} is not key=value")
            fields[key] = (*fields.get(key, ()), value.replace("_", " "))
        yield number, name, fields


def _document_names(folder: Path) -> list[str]:
    """Names of a split's PDFs in order; raises DataError if nothing lists them."""
    for name in ("documents.txt", "in.tsv", "in.tsv.xz"):
        path = folder / name
        if path.is_file():
            break
    else:
        raise DataError(f"{folder}: no in.tsv.xz, in.tsv or documents.txt that lists the PDFs")
    try:
        with (
            lzma.open(path, "rt", encoding="utf-8")
            if path.suffix == ".xz"
            else open(path, encoding="utf-8") as file
        ):
            names = [line.split("\t", 1)[0].strip() for line in file if line.strip()]
    except (OSError, lzma.LZMAError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [name if name.lower().endswith(".pdf") else f"{name}.pdf" for name in names]


def _read_due(path: Path) -> Iterator[tuple[int, str, Fields]]:
    """Yield row, file name and fields of DUE's ``document.jsonl``."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document: Any = json.loads(line)
            fields: Fields = {}
            for item in document["annotations"]:
                values = [v for value in item["values"] for v in _variants(value)]
                fields[item["key"]] = (*fields.get(item["key"], ()), *dict.fromkeys(values))
            name = f"{document['name']}.pdf"
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}:{number}: not a document of DUE: {reason}") from error
        yield number, name, fields


def _variants(value: dict[str, Any]) -> list[str]:
    return [str(value["value"]), *map(str, value.get("value_variants") or ())]
