"""Fields of many documents: a row a document, here or by the workers of a batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..documents.page_images import Pages
from ..errors import DataError
from ..inference.ask import load_model
from ..inference.confidence import calibration_of
from ..inference.extract import Extractor
from ..inference.field_schema import Schema
from ..inference.values import Spelling
from ..weights.resolve import resolve
from .driver import Run, finish_rows, where_workers_find
from .parts import Row, claimed, own_row, read_parts
from .pool import Pool, answered
from .requests import Unit
from .worker import Job, RowWriter

__all__ = ["Extracting", "document_row", "earlier_rows", "extract_rows"]


@dataclass(frozen=True)
class Extracting:
    """What is asked of every document, and how its pages are made.

    Attributes:
        schema: names or a JSON Schema, see :func:`alignvlm.inference.extract.field_questions`.
        spelling: fields of :class:`alignvlm.inference.values.Spelling`.
        min_confidence, max_new_tokens: see :class:`alignvlm.inference.extract.Extractor`.
        dpi, pages, max_pages, password: see :class:`alignvlm.documents.page_images.Pages`.
    """

    schema: Schema
    spelling: Mapping[str, Any] = field(default_factory=dict)
    min_confidence: float = 0.0
    max_new_tokens: int = 64
    dpi: float = 144
    pages: str | None = None
    max_pages: int | None = None
    password: str | None = field(default=None, repr=False)

    def settings(self) -> dict[str, Any]:
        """All that decides the values; no password."""
        return {key: value for key, value in asdict(self).items() if key != "password"}

    def load(self, model: str) -> Extractor:
        """The model, ready for documents.

        Raises:
            WeightsError: it cannot be loaded.
        """
        return Extractor(
            *load_model(model),
            self.schema,
            spelling=Spelling(**self.spelling),
            calibration=calibration_of(resolve(model)),
            min_confidence=self.min_confidence,
            max_new_tokens=self.max_new_tokens,
        )

    def pages_of(self, file: str) -> Pages:
        """Of one document."""
        return Pages(
            [file],
            dpi=self.dpi,
            pages=self.pages,
            max_pages=self.max_pages,
            password=self.password,
        )


def document_row(extractor: Extractor, pages: Pages, name: str) -> Row:
    """What one document says; a document that cannot be read costs its own row.

    Returns:
        ``file`` and ``values``, or ``file`` and ``error``; with ``notes`` if there is something
        that a person should know of it.
    """

    pages.pdf_pixels = extractor.processor.image_processor.useful_pixels()

    def make() -> Row:
        notes = [pages.left_out] if pages.left_out else []
        found = extractor(pages)
        notes += [f"nothing was read on {name} page {page}" for page in found.unread]
        row: Row = {"values": {key: asdict(own) for key, own in found.values.items()}}
        return {**row, "notes": notes} if notes else row

    return own_row(name, make)


class FieldsWorker(RowWriter):
    """Extracts from documents and writes their rows; its job is of an :class:`Extracting`."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.out)
        self.extracting: Extracting = job.asking
        self.extractor = self.extracting.load(job.model)

    def answer(self, units: Sequence[Unit]) -> list[Row]:
        return [self._row(unit) for unit in units]

    def _row(self, unit: Unit) -> Row:
        (path,) = unit.paths
        row = _packed(document_row(self.extractor, self.extracting.pages_of(path), unit.file))
        return {"id": unit.id, "request": unit.request, **row}


def _units(files: Sequence[str], extracting: Extracting) -> list[Unit]:
    """A unit a document; another file of the same name is another request."""
    units = []
    for index, file in enumerate(files):
        path = Path(file).resolve()
        state = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        text = json.dumps([file, state, extracting.settings()], sort_keys=True, default=str)
        request = hashlib.sha256(text.encode()).hexdigest()[:16]
        units.append(Unit(index, file, file, (str(path),), request=request))
    return units


def earlier_rows(
    files: Sequence[str], folder: str | os.PathLike[str], extracting: Extracting
) -> dict[str, Row]:
    """Rows of these documents that workers wrote, and nobody collected, by file.

    Raises:
        DataError: a part is damaged.
    """
    found = read_parts(Path(folder))
    units = _units(files, extracting) if found else []
    return {
        unit.file: _unpacked(found[unit.id, unit.request])
        for unit in units
        if (unit.id, unit.request) in found
    }


def extract_rows(
    model: str,
    files: Sequence[str],
    folder: str | os.PathLike[str],
    extracting: Extracting,
    pool: Pool,
    *,
    progress: bool = False,
    run: Run = answered,
) -> list[Row]:
    """Rows of documents by the workers of a pool, in order.

    Finished rows are in ``folder``, whatever dies; the same call goes on from there.

    Args:
        model: folder or hub id.
        files: documents, each named once.
        folder: every machine must see it, and the documents.
        extracting, pool: what is asked, and who works.
        progress: show a bar on stderr.
        run: what spreads the work.

    Raises:
        DataError: ``folder`` is another's, or a row is missing.
        WeightsError: no such model.
        ConfigError: Ray cannot be started as asked.
    """
    out = Path(os.path.abspath(folder))
    units = _units(files, extracting)
    with claimed(out, model, "run"):
        job = Job(where_workers_find(model), str(out), extracting, FieldsWorker, "file")
        finish_rows(units, job, pool, progress=progress, run=run)
    rows = earlier_rows(files, out, extracting)
    if missing := [file for file in files if file not in rows]:
        raise DataError(f"{out}: {len(missing)} rows are missing, {missing[0]!r} first; run again")
    return [rows[file] for file in files]


def _packed(row: Row) -> Row:
    """With numbers and dates that JSON can hold, and give back."""
    if "values" not in row:
        return row
    packed = {}
    for name, own in row["values"].items():
        value = own["value"]
        if isinstance(value, Decimal):
            value = {"decimal": str(value)}
        elif isinstance(value, date):
            value = {"date": value.isoformat()}
        packed[name] = {**own, "value": value}
    return {**row, "values": packed}


def _unpacked(row: Row) -> Row:
    """The document's own part of a row, as :func:`document_row` made it."""
    row = {key: row[key] for key in ("file", "values", "error", "notes") if key in row}
    for own in row.get("values", {}).values():
        own["boxes"] = [tuple(box) for box in own["boxes"]]
        if isinstance(own["value"], dict):
            ((kind, text),) = own["value"].items()
            own["value"] = Decimal(text) if kind == "decimal" else date.fromisoformat(text)
    return row
