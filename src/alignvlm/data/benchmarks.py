"""Public document benchmarks, read from their official file layouts in a folder the user names.

Opening a benchmark reads its questions and checks that every table, image and PDF they name is
there; nothing is decoded or rendered until a record is asked for. Tables (WikiTableQuestions,
TabFact) become page images through :func:`alignvlm.data.render.render_table`, PDFs through
:mod:`alignvlm.data.documents`. ``source.gold(i)`` has the accepted answers for the metrics.
"""

from __future__ import annotations

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from PIL import Image

from ..errors import DataError, nearest
from .documents import load_pages, pdf_words, read_json, read_text
from .records import Record, make_record
from .sources import check_index

if TYPE_CHECKING:
    from .corpus import Table
    from .render import Word

ANSWER_SEPARATOR = "|"
"""Between the items of a list answer (WikiTableQuestions), as in the official files."""


class Row(NamedTuple):
    """One question: its id, what its page is made from, the text, and the accepted answers."""

    id: str
    key: str
    question: str
    answers: tuple[str, ...]


class Benchmark(ABC):
    """A split of a benchmark as a map-style source.

    Args:
        root: the benchmark's folder.
        split: split name, as the files have it.

    Raises:
        DataError: unknown split, or anything missing, unreadable or double; with file and row.
    """

    key: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split, self.name = Path(root), split, f"{self.key}-{split}"
        if not self.root.is_dir():
            raise DataError(f"{self.key}: no such folder: {self.root}")
        if split not in self.splits:
            hint = nearest(split, self.splits)
            raise DataError(f"{self.key}: no split {split!r}{hint}; use {', '.join(self.splits)}")
        self.rows = list(self._read())
        if not self.rows:
            raise DataError(f"{self.root}: {self.key} {split} has no questions")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        """Read or render the page and return the record."""
        row = self.rows[check_index(index, len(self), self.name)]
        images, words = self._pages(row)
        turn = (row.question, ANSWER_SEPARATOR.join(row.answers))
        return make_record(row.id, images, [turn], source=self.name, words=words)

    def gold(self, index: int) -> tuple[str, ...]:
        """Return the answer's items (more than one only where the answer is a list)."""
        return self.rows[check_index(index, len(self), self.name)].answers

    @abstractmethod
    def _read(self) -> Iterator[Row]:
        """Yield the questions, checking the layout on the way."""

    @abstractmethod
    def _pages(self, row: Row) -> tuple[list[Any], list[list[Word]] | None]:
        """Return the images and their words."""


class _Tables(Benchmark):
    """A benchmark over tables; ``render`` has options for :func:`render_table`."""

    def __init__(self, root: str | Path, split: str, **render: Any) -> None:
        super().__init__(root, split)
        self.render = render

    def table(self, index: int) -> Table:
        """Return the table of question ``index``."""
        return self._table(self.rows[check_index(index, len(self), self.name)])

    @abstractmethod
    def _table(self, row: Row) -> Table:
        """Read the table."""

    def _pages(self, row: Row) -> tuple[list[Image.Image], list[list[Word]]]:
        from .render import render_table

        page = render_table(self._table(row), **self.render)
        return [page.image], [list(page.words)]


class WTQSource(_Tables):
    """WikiTableQuestions (Pasupat & Liang, 2015): questions over rendered tables.

    Layout: ``data/random-split-1-{train,dev}.tsv``, ``data/pristine-unseen-tables.tsv`` (test) and
    the tables under ``csv/``. A list answer is written ``a|b``.
    """

    key = "wtq"
    splits = ("train", "dev", "test")

    def _read(self) -> Iterator[Row]:
        test = self.split == "test"
        name = "pristine-unseen-tables.tsv" if test else f"random-split-1-{self.split}.tsv"
        path = self.root / "data" / name
        lines = read_text(path).split("\n")
        columns = ["id", "utterance", "context", "targetValue"]
        if lines[0].rstrip("\r").split("\t") != columns:
            raise DataError(f"{path}:1: the columns must be {', '.join(columns)}")
        ids: dict[str, int] = {}
        found: set[str] = set()
        for number, line in enumerate(lines[1:], start=2):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) != len(columns):
                raise DataError(f"{path}:{number}: {len(cells)} columns, expected {len(columns)}")
            row_id, question, table, target = cells
            _unique(row_id, ids, path, number)
            if table not in found and not (self.root / table).is_file():
                raise DataError(f"{path}:{number}: table not found: {self.root / table}")
            found.add(table)
            answers = tuple(_unescape(item) for item in target.split("|"))
            if not question.strip() or not all(item.strip() for item in answers):
                raise DataError(f"{path}:{number}: empty question or answer")
            yield Row(row_id, table, _unescape(question), answers)

    def _table(self, row: Row) -> Table:
        from .corpus import table_from_csv

        return table_from_csv(self.root / row.key)


class TabFactSource(_Tables):
    """TabFact (Chen et al., 2020): is a statement supported by a rendered table, yes or no.

    Layout: ``tokenized_data/{train,val,test}_examples.json`` (table id to statements, labels and
    caption) and ``data/all_csv`` (cells separated by ``#``).
    """

    key = "tabfact"
    splits = ("train", "val", "test")
    prompt = "Is this statement supported by the table? {} Answer yes or no."

    def _read(self) -> Iterator[Row]:
        path = self.root / "tokenized_data" / f"{self.split}_examples.json"
        examples = read_json(path)
        present = _names(self.root / "data" / "all_csv")
        if not isinstance(examples, dict):
            raise DataError(f"{path}: expected an object from table id to statements and labels")
        self._captions: dict[str, str] = {}
        for table, entry in examples.items():
            where = f"{path}: table {table!r}"
            if not (isinstance(entry, list) and len(entry) == 3):
                raise DataError(f"{where}: expected [statements, labels, caption]")
            statements, labels, caption = entry
            if not (isinstance(statements, list) and isinstance(labels, list)):
                raise DataError(f"{where}: statements and labels must be lists")
            if len(statements) != len(labels):
                raise DataError(f"{where}: {len(statements)} statements, {len(labels)} labels")
            if table not in present:
                raise DataError(f"{where}: not found in {self.root / 'data' / 'all_csv'}")
            self._captions[table] = str(caption)
            for number, (text, label) in enumerate(zip(statements, labels, strict=True)):
                if label not in (0, 1) or not isinstance(text, str) or not text.strip():
                    raise DataError(
                        f"{where}: statement {number + 1}: needs a text and a label 0 or 1"
                    )
                answer = "yes" if label else "no"
                yield Row(f"{table}/{number}", table, self.prompt.format(text), (answer,))

    def _table(self, row: Row) -> Table:
        from .corpus import table_from_csv

        path = self.root / "data" / "all_csv" / row.key
        return table_from_csv(path, delimiter="#", title=self._captions[row.key])


class ChartQASource(Benchmark):
    """ChartQA (Masry et al., 2022): questions over chart images.

    Layout: ``{split}/png`` and ``{split}/{split}_human.json``, ``{split}/{split}_augmented.json``,
    whichever of the two there are.
    """

    key = "chartqa"
    splits = ("train", "val", "test")

    def _read(self) -> Iterator[Row]:
        folder = self.root / self.split
        paths = [folder / f"{self.split}_{part}.json" for part in ("human", "augmented")]
        if not any(path.is_file() for path in paths):
            raise DataError(f"neither {paths[0]} nor {paths[1]} exists")
        present = _names(folder / "png")
        for path in filter(Path.is_file, paths):
            items = read_json(path)
            if not isinstance(items, list):
                raise DataError(f"{path}: expected a list of questions")
            for number, item in enumerate(items, start=1):
                row = [_string(item, key, path, number) for key in ("imgname", "query", "label")]
                if row[0] not in present:
                    raise DataError(f"{path}:{number}: image not found: {folder / 'png' / row[0]}")
                yield Row(f"{path.stem}/{number - 1}", row[0], row[1], (row[2],))

    def _pages(self, row: Row) -> tuple[list[str], None]:
        return [str(self.root / self.split / "png" / row.key)], None


class SROIESource(Benchmark):
    """SROIE (ICDAR 2019): four fields of scanned receipts, with the words of each scan.

    Layout: ``{split}/img/*.jpg``, ``{split}/box/*.csv`` (x1,y1,...,x4,y4,text a line) and
    ``{split}/key/*.json``. Empty fields are not asked for. Boxes are given per text line: a word
    gets its share of the line by its letters.
    """

    key = "sroie"
    splits = ("train", "val", "test")
    questions: ClassVar[dict[str, str]] = {
        "company": "What is the name of the company on this receipt?",
        "date": "What is the date on this receipt?",
        "address": "What is the address on this receipt?",
        "total": "What is the total amount on this receipt?",
    }

    def _read(self) -> Iterator[Row]:
        folder = self.root / self.split
        names: dict[str, str] = {}
        for name in sorted(_names(folder / "img")):
            if Path(name).suffix.lower() in (".jpg", ".jpeg", ".png"):
                if Path(name).stem in names:
                    other = names[Path(name).stem]
                    raise DataError(f"{folder / 'img' / name}: same id as {other}")
                names[Path(name).stem] = name
        keys, boxes = _names(folder / "key"), _names(folder / "box")
        for stem in sorted({Path(name).stem for name in keys} - set(names)):
            raise DataError(f"{folder / 'key' / stem}.json: image not found: img/{stem}.jpg")
        self._words: dict[str, list[tuple[str, list[float], int]]] = {}
        for stem, name in names.items():
            for part, suffix, present in (("key", "json", keys), ("box", "csv", boxes)):
                if f"{stem}.{suffix}" not in present:
                    missing = folder / part / f"{stem}.{suffix}"
                    raise DataError(f"{folder / 'img' / name}: {missing} is missing")
            path = folder / "key" / f"{stem}.json"
            fields = read_json(path)
            if not isinstance(fields, dict):
                raise DataError(f"{path}: expected an object with {', '.join(self.questions)}")
            self._words[name] = _box_lines(folder / "box" / f"{stem}.csv")
            for field, question in self.questions.items():
                value = fields.get(field)
                if value is not None and not isinstance(value, str):
                    raise DataError(f"{path}: {field!r} must be a string, got {value!r:.40}")
                if value and value.strip():
                    yield Row(f"{stem}/{field}", name, question, (value.strip(),))

    def _pages(self, row: Row) -> tuple[list[str], list[list[Word]]]:
        words = [w for text, box, line in self._words[row.key] for w in split_line(text, box, line)]
        return [str(self.root / self.split / "img" / row.key)], [words]


def _box_lines(path: Path) -> list[tuple[str, list[float], int]]:
    """Read ``x1,y1,...,x4,y4,text`` lines as text, upright box and line number."""
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.strip("\r").split(",", 8)
        try:
            corners = [float(cell) for cell in cells[:8]]
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}; needs x1,y1,...,x4,y4,text") from error
        if len(cells) < 9:
            raise DataError(f"{path}:{number}: {len(cells)} values, needs x1,y1,...,x4,y4,text")
        xs, ys = corners[0::2], corners[1::2]
        found.append((cells[8], [min(xs), min(ys), max(xs), max(ys)], len(found)))
    return found


def split_line(text: str, box: list[float], line: int) -> list[Word]:
    """Split a text line into words that share its box in proportion to their letters."""
    from .render import Word

    text = text.strip()
    x0, y0, x1, y1 = box
    step = (x1 - x0) / max(len(text), 1)
    words, position = [], 0
    for part in text.split():
        start = text.index(part, position)
        position = start + len(part)
        edges = [x0 + step * i for i in range(start, position + 1)]
        part_box = (edges[0], y0, edges[-1], y1)
        words.append(Word(text=part, box=part_box, line=line, char_x=tuple(edges[:-1])))
    return words


class DeepFormSource(Benchmark):
    """DeepForm (Svetlichnaya, 2020): five fields of political-advertising contracts in PDF.

    Layout: ``{split}/pdfs/{file_id}.pdf`` and ``{split}/labels.csv``. Empty fields are not asked
    for. Records have the first ``max_pages`` pages and the words of their text layers; a field may
    stand on a later page.
    """

    key = "deepform"
    splits = ("train", "val", "test")
    questions: ClassVar[dict[str, str]] = {
        "contract_num": "What is the contract number?",
        "advertiser": "Who is the advertiser?",
        "gross_amount": "What is the gross amount?",
        "flight_from": "What is the first day of the flight dates?",
        "flight_to": "What is the last day of the flight dates?",
    }

    def __init__(
        self, root: str | Path, split: str, *, max_pages: int | None = 3, dpi: float = 144
    ) -> None:
        if max_pages is not None and max_pages < 1:
            raise DataError(f"deepform: max_pages must be at least 1, not {max_pages}")
        self.max_pages, self.dpi = max_pages, dpi
        super().__init__(root, split)

    def _read(self) -> Iterator[Row]:
        path = self.root / self.split / "labels.csv"
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        columns = ("file_id", *self.questions)
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise DataError(f"{path}:1: no column {column!r}; needs {', '.join(columns)}")
        present = _names(self.root / self.split / "pdfs")
        ids: dict[str, int] = {}
        try:
            for cells in reader:
                where, file_id = f"{path}:{reader.line_num}", cells["file_id"]
                if None in cells or None in cells.values():
                    raise DataError(f"{where}: not as many columns as the first line has")
                _unique(file_id, ids, path, reader.line_num)
                if f"{file_id}.pdf" not in present:
                    missing = self.root / self.split / "pdfs" / f"{file_id}.pdf"
                    raise DataError(f"{where}: PDF not found: {missing}")
                for field, question in self.questions.items():
                    if value := cells[field].strip():
                        yield Row(f"{file_id}/{field}", f"{file_id}.pdf", question, (value,))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.reader.line_num}: {error}") from error

    def _pages(self, row: Row) -> tuple[list[Image.Image], list[list[Word]]]:
        path = self.root / self.split / "pdfs" / row.key
        images = load_pages(path, dpi=self.dpi, max_pages=self.max_pages)
        return images, [pdf_words(path, page, dpi=self.dpi) for page in range(len(images))]


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return set(os.listdir(folder))


def _string(item: Any, key: str, path: Path, number: int) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}:{number}: {key!r} must be a non-empty string, got {value!r:.40}")
    return value


def _unique(row_id: str, seen: dict[str, int], path: Path, row: int) -> None:
    if not row_id.strip():
        raise DataError(f"{path}:{row}: empty id")
    if row_id in seen:
        raise DataError(f"{path}:{row}: id {row_id!r} is already on row {seen[row_id]}")
    seen[row_id] = row


def _unescape(text: str) -> str:
    """Undo the escapes of WikiTableQuestions: backslash n, p (a bar) and backslash."""
    return text.replace(r"\n", "\n").replace(r"\p", "|").replace("\\\\", "\\")


BENCHMARKS: dict[str, type[Benchmark]] = {
    source.key: source
    for source in (WTQSource, TabFactSource, ChartQASource, SROIESource, DeepFormSource)
}
"""Every benchmark by name."""
