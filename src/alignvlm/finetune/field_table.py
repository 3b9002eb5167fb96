"""The table that ``alignvlm extract`` writes, corrected by hand, as questions to train on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image

from ..data.records import Record, make_record
from ..data.sources import check_index
from ..documents.opening import open_document, read_json
from ..documents.page_images import Pages
from ..errors import DataError
from ..inference.extract import DETAILS, asked_path
from ..inference.field_schema import FieldQuestion, field_questions
from ..inference.page_spans import ABSENT
from ..inference.values import Kind, Parsed, Spelling, parse

SPELLINGS = [Spelling(day_first, mark) for day_first, mark in product((True, False), (".", ","))]


@dataclass(frozen=True)
class Taught:
    """A question about one page of a document, and the answer that the table gives."""

    file: Path
    page: int
    question: str
    answer: str


class FieldTable:
    """A record for each field of each document.

    A value whose words the table has (``total_text``) is taught as these words, unless it was
    corrected: then as it stands. An empty value is taught as :data:`ABSENT`. Left out, and counted
    in :attr:`left_out`: documents with an error, values that ``extract`` itself left empty (their
    note says why), and values of a document with several pages whose page is not said.

    Args:
        path: CSV with the columns ``file`` and one a field, perhaps those that ``extract`` adds.
        images: folder that relative names of files start from; default: the table's own, or where
            the command runs.
        dpi: resolution PDFs are rendered at.

    Raises:
        DataError: no such table, or a row that cannot be used, with its line.
    """

    name = "questions"

    def __init__(self, path: Path, *, images: Path | None = None, dpi: float = 144) -> None:
        self.path, self.images, self.dpi = path, images, dpi
        self.left_out: dict[str, int] = {}
        self._pages: dict[Path, int] = {}
        self._image: tuple[tuple[Path, int], Image.Image] | None = None
        self.taught = list(self._read())
        if not self.taught:
            raise DataError(f"{path}: no value that could be taught{self.said_left_out()}")

    def __len__(self) -> int:
        return len(self.taught)

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self), self.name)
        one = self.taught[index]
        turns = [(one.question, one.answer)]
        image = self._opened(one.file, one.page)
        return make_record(f"{one.file}#{index}", [image], turns, source=self.name)

    def _opened(self, file: Path, number: int) -> Image.Image:
        """A page; the last one is kept, for it is asked several things."""
        if self._image is None or self._image[0] != (file, number):
            (page,) = Pages([file], dpi=self.dpi, pages=str(number))
            self._image = (file, number), page.image
        return self._image[1]

    def documents(self) -> list[str]:
        """The document of each record."""
        return [str(one.file) for one in self.taught]

    def pages(self) -> list[tuple[Path, int]]:
        """The page that each record asks about."""
        return [(one.file, one.page) for one in self.taught]

    def said_left_out(self) -> str:
        """What was left out and why, to go behind a sentence; empty if nothing was."""
        parts = [f"{count} {why}" for why, count in self.left_out.items()]
        return f"; left out: {', '.join(parts)}" if parts else ""

    def _read(self) -> Iterator[Taught]:
        reader = _reader(self.path)
        questions = _questions(self.path, reader.fieldnames or ())
        for row in reader:
            where = f"{self.path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: not as many cells as there are columns")
            cells = {key: " ".join(cell.split()) for key, cell in row.items()}
            if cells.get("error"):
                self._leave_out("documents with an error")
            elif any(cells.values()):
                yield from self._document(cells, questions, where)

    def _document(
        self, cells: Mapping[str, str], questions: list[FieldQuestion], where: str
    ) -> Iterator[Taught]:
        file = self._file(cells["file"], where)
        for one in questions:
            answer = _answer(cells, one.name, one.kind)
            if answer is None:
                self._leave_out("values that extract left empty")
                continue
            page = self._page(file, cells.get(f"{one.name}_page", ""), answer, where)
            if page is None:
                self._leave_out("values without their page")
                continue
            yield Taught(file, page, one.question, answer)

    def _leave_out(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1

    def _file(self, name: str, where: str) -> Path:
        if not name:
            raise DataError(f"{where}: no file is named")
        if self.images is None:
            tried = [self.path.parent / name, Path(name)]
        else:
            tried = [self.images / name, self.images / Path(name).name]
        for path in tried:
            if path.is_file():
                return path.absolute()
        raise DataError(f"{where}: {tried[0]}: no such file; --images names the files' folder")

    def _page(self, file: Path, said: str, answer: str, where: str) -> int | None:
        """The page asked about; what is nowhere in a document is not on its first page."""
        if file not in self._pages:
            with open_document(str(file)) as document:
                self._pages[file] = document.count
        count = self._pages[file]
        if not said:
            return 1 if count == 1 or answer == ABSENT else None
        try:
            page = int(float(said))
        except (ValueError, OverflowError):
            page = 0
        if not 1 <= page <= count:
            raise DataError(f"{where}: {file.name} has {count} pages, there is no {said!r}")
        return page


def _reader(path: Path) -> csv.DictReader[str]:
    """Rows by column; a spreadsheet may have put semicolons or tabs between cells.

    Raises:
        DataError: no such file, not UTF-8, or no column ``file``.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text: save the table as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    names = list(reader.fieldnames or ())
    if "file" not in names:
        raise DataError(f"{path}: no column 'file': the first line names file and fields")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: two columns are called {double!r}")
    return reader


def _questions(path: Path, columns: Iterable[str]) -> list[FieldQuestion]:
    """The table's fields, worded as ``extract`` words them.

    The file beside the table says how they were asked, which a schema's descriptions decide.
    """
    names = list(columns)
    details = {f"{name}_{detail}" for name in names for detail in DETAILS}
    fields = [name for name in names if name not in {"file", "error", "", *details}]
    if not fields:
        raise DataError(f"{path}: no column of a field beside 'file'")
    asked: dict[str, FieldQuestion] = {}
    beside = asked_path(path)
    if beside.is_file():
        try:
            rows = read_json(beside)["fields"]
            asked = {row["name"]: FieldQuestion(**row) for row in rows}
        except (TypeError, KeyError):
            raise DataError(f"{beside}: damaged; remove it to word the questions anew") from None
    return [asked.get(name) or field_questions([name])[0] for name in fields]


def _answer(cells: Mapping[str, str], name: str, kind: Kind) -> str | None:
    """What is taught; ``None``: the table does not say."""
    value, text = cells[name], cells.get(f"{name}_text", "")
    if not value:
        return None if cells.get(f"{name}_note") else ABSENT
    if not text or value == text:
        return value
    return text if _readings(value, kind) & _readings(text, kind) else value


def _readings(text: str, kind: Kind) -> set[object]:
    """All that some words can be, in any spelling."""
    read: list[Parsed] = [parse(text, kind, spelling) for spelling in SPELLINGS]
    return {one.value for one in read if one.value is not None}
