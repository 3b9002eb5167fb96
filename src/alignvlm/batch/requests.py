"""What a batch asks: the pages of a folder, or the records of a JSONL file, one unit each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.harvest.harvesting import find_files
from ..data.records import Record, validate_record
from ..data.sources import TRANSCRIBE_QUESTION
from ..documents.opening import (
    SUFFIXES,
    is_pdf,
    open_document,
    parse_pages,
)
from ..errors import ConfigError, DataError
from ..processing.image_processor import MAX_PIXELS

MAX_PAGES = 64
"""Pages of one record; a worker holds all of them in memory."""


@dataclass(frozen=True)
class Unit:
    """One question about one page, or about the pages of one record.

    Attributes:
        index: place in the input; the results have this order.
        id: the same in every run over the same input, and used once.
        file: what the row calls the document.
        paths: PDFs and pictures, absolute.
        page: from 1; ``None``: all pages of all ``paths``.
        question: asked about the pages.
        request: hash of everything that decides the answer, besides the model.
        error: why it cannot be asked, known without opening the pages.
    """

    index: int
    id: str
    file: str
    paths: tuple[str, ...] = ()
    page: int | None = None
    question: str = ""
    request: str = ""
    error: str | None = None

    def to_json(self) -> str:
        """For :meth:`from_json`."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """What :meth:`to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "paths": tuple(data["paths"])})


@dataclass(frozen=True)
class Asking:
    """How every unit is asked.

    Attributes:
        question: of pages and records that bring none.
        dpi: resolution PDFs are rendered at, pixels per inch.
        max_new_tokens: longest answer.
        repetition_guard: end an answer that goes round in circles.
    """

    question: str = TRANSCRIBE_QUESTION
    dpi: float = 144
    max_new_tokens: int = 512
    repetition_guard: bool = True


def list_units(source: Path, asking: Asking, *, without: Path) -> list[Unit]:
    """All units of an input, in its order; what cannot be asked has its ``error``.

    Args:
        source: a folder, looked through at all depths, or a JSONL file.
        without: a folder whose files do not count: the output may lie within the input.

    Raises:
        DataError: no such input, or nothing in it.
        ConfigError: an empty question.
    """
    if not asking.question.strip():
        raise ConfigError("the question is empty")
    if source.is_file():
        if source.suffix.lower() not in (".jsonl", ".ndjson"):
            raise DataError(f"{source}: the input is a folder of documents or a .jsonl file")
        found = list(_of_records(source, asking.question))
        if not found:
            raise DataError(f"{source}: no records (the file is empty)")
    else:
        files = find_files(source, SUFFIXES, without=without)
        found = [unit for name, path in files for unit in _of_file(name, path, asking.question)]
    return [
        replace(unit, index=index, request=_request(unit, asking))
        for index, unit in enumerate(found)
    ]


def _request(unit: Unit, asking: Asking) -> str:
    """Hash of the question, the settings and the files (by size and time of change)."""
    files = []
    for path in unit.paths:
        try:
            status = os.stat(path)
            files.append((status.st_size, status.st_mtime_ns))
        except OSError:
            files.append(None)
    settings = {**asdict(asking), "question": unit.question}
    asked = [unit.id, unit.page, unit.error, files, settings]
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_file(name: str, path: Path, question: str) -> Iterator[Unit]:
    """A unit a page; one with an error if the file cannot be opened."""
    whole = Unit(0, name, name, (str(path.resolve()),), question=question)
    try:
        if not (is_pdf(path) or path.suffix.lower() in (".tif", ".tiff")):
            yield replace(whole, page=1)  # opened only by the worker that asks about it
            return
        with open_document(path) as document:
            pages = document.count
    except (DataError, OSError) as error:
        yield replace(whole, error=str(error))
        return
    for page in range(1, pages + 1):
        yield replace(whole, id=f"{name}:{page}", page=page)


def _of_records(path: Path, question: str) -> Iterator[Unit]:
    rows: dict[str, int] = {}
    with open(path, "rb") as file:
        for row, line in enumerate(file, start=1):
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            where = f"{path.name}:{row}"
            try:
                unit = _of_record(line, where, path.parent, question)
                if unit.id in rows:
                    raise DataError(f"{where}: id {unit.id!r} is already on row {rows[unit.id]}")
                rows[unit.id] = row
                yield unit
            except DataError as error:
                # the line itself decides whether a corrected record is asked again
                digest = hashlib.sha256(line).hexdigest()
                yield Unit(0, where, path.name, question=digest, error=str(error))


def _of_record(line: bytes, where: str, folder: Path, question: str) -> Unit:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    page = None
    if isinstance(data, dict):
        page = data.pop("page", None)
        if page is not None and (type(page) is not int or page < 1):
            raise DataError(f"{where}: 'page' must be a whole number from 1, got {page!r}")
        if "image" in data:
            data.setdefault("question", question)
    record = validate_record(data, where=where, base_dir=folder)
    _check_one_question(record, where)
    if page is not None and len(record.images) != 1:
        raise DataError(f"{where}: 'page' needs exactly one file, got {len(record.images)}")
    paths = tuple(str(Path(str(image)).resolve()) for image in record.images)
    name = ", ".join(_shown(path, folder) for path in paths)
    return Unit(0, record.id, name, paths, page, record.question)


def _check_one_question(record: Record, where: str) -> None:
    roles = [message["role"] for message in record.messages]
    if roles.count("user") != 1 or "system" in roles:
        raise DataError(
            f"{where}: a batch asks one question a record, without a system message; write a "
            "record for each question"
        )
    parts: list[dict[str, Any]] = record.messages[0]["content"]
    kinds = [part["type"] for part in parts]
    if kinds != sorted(kinds):  # "image" comes before "text"
        raise DataError(f"{where}: images must come before the text of the question")


def _shown(path: str, folder: Path) -> str:
    try:
        return Path(path).relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path


def load_unit(unit: Unit, dpi: float, pdf_pixels: int | None = None) -> list[Any]:
    """The page images of a unit; ``pdf_pixels``: see :func:`.opening.open_document`.

    Raises:
        DataError: a document cannot be opened or lacks the page, or there are more than
            :data:`MAX_PAGES`.
    """
    pages, images = None if unit.page is None else str(unit.page), []
    for path in unit.paths:
        with open_document(path, pdf_pixels=pdf_pixels) as document:
            chosen = parse_pages(pages, document.count, where=path)
            if len(images) + len(chosen) > MAX_PAGES:
                raise DataError(
                    f"{path}: more than {MAX_PAGES} pages are not asked about together; write a "
                    "record for each page"
                )
            images += [document.render(index, dpi, MAX_PIXELS) for index in chosen]
    return images
