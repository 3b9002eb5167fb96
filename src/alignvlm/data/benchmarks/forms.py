"""Benchmarks that ask for the fields of a document: SROIE (scanned receipts), DeepForm (PDFs).

A field without a value is no training sample, but DeepForm's score counts what is answered for it
as a false positive, so evaluation asks for it: ``ask_empty=True`` gives rows without answers.
"""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from ...documents.opening import load_pages, pdf_page_count, pdf_words, read_json, read_text
from ...errors import DataError
from .benchmark import Benchmark, BenchmarkRow, names_in, same_file, unique, verify_image

if TYPE_CHECKING:
    from ...documents.words import Word


class SROIESource(Benchmark):
    """SROIE (ICDAR 2019): four fields of scanned receipts, with the words of each scan.

    Layout: ``{split}/img/*.jpg``, ``{split}/box/*.csv`` (x1,y1,...,x4,y4,text a line) and
    ``{split}/key/*.json``; ``.txt`` for either, and no ``box`` folder, are accepted too. Empty
    fields are not asked for. Boxes are given per text line: a word gets its share of the line by
    its letters.
    """

    key = "sroie"
    splits = ("train", "val", "test")
    questions: ClassVar[dict[str, str]] = {
        "company": "What is the name of the company on this receipt?",
        "date": "What is the date on this receipt?",
        "address": "What is the address on this receipt?",
        "total": "What is the total amount on this receipt?",
    }

    def _read(self) -> Iterator[BenchmarkRow]:
        folder = self.root / self.split
        names = self._scans(folder / "img")
        keys = names_in(folder / "key")
        boxes = names_in(folder / "box") if (folder / "box").is_dir() else None
        for key in sorted(key for key in keys if Path(key).stem not in names):
            others = {s: self.root / s / "img" / f"{Path(key).stem}.jpg" for s in self.splits}
            why = self._missing("image", folder / "img" / f"{Path(key).stem}.jpg", others)
            raise DataError(f"{folder / 'key' / key}: {why}")
        self._words: dict[str, list[tuple[str, list[float], int]]] | None = None
        if boxes is not None:
            self._words = {}
        for stem, name in names.items():
            path = _beside(folder, "key", stem, ("json", "txt"), keys, name)
            fields = read_json(path)
            if not isinstance(fields, dict):
                raise DataError(f"{path}: expected an object with {', '.join(self.questions)}")
            self.label_files.append(path)
            if self._words is not None and boxes is not None:
                box = _beside(folder, "box", stem, ("csv", "txt"), boxes, name)
                self._words[name] = _box_lines(box)
            for field, question in self.questions.items():
                value = fields.get(field)
                if value is not None and not isinstance(value, str):
                    raise DataError(f"{path}: {field!r} must be a string, got {value!r:.40}")
                if value and value.strip():
                    where = f"{path}: {field}"
                    yield BenchmarkRow(f"{stem}/{field}", name, question, (value.strip(),), where)
        self._not_of_another_split()

    def _scans(self, folder: Path) -> dict[str, str]:
        """Pictures in a folder: the name without its ending, to the name."""
        names: dict[str, str] = {}
        for name in sorted(names_in(folder)):
            if Path(name).suffix.lower() in (".jpg", ".jpeg", ".png"):
                if Path(name).stem in names:
                    raise DataError(f"{folder / name}: same id as {names[Path(name).stem]}")
                names[Path(name).stem] = name
        return names

    def _not_of_another_split(self) -> None:
        """Refuse keys that are all copies of another split's (receipts may share numbers)."""
        for split in self.splits:
            if split != self.split and self.label_files:
                others = [self.root / split / "key" / path.name for path in self.label_files]
                if all(map(same_file, self.label_files, others)):
                    raise DataError(
                        f"{self.label_files[0]}: this and every other key is the same as in "
                        f"{others[0].parent}: do they belong to split {split!r}?"
                    )

    def _check(self, row: BenchmarkRow) -> None:
        verify_image(self.root / self.split / "img" / row.key)

    def _images(self, row: BenchmarkRow) -> list[str]:
        return [str(self.root / self.split / "img" / row.key)]

    def _pages(self, row: BenchmarkRow) -> tuple[list[str], list[list[Word]] | None]:
        if self._words is None:
            return self._images(row), None
        words = [w for text, box, line in self._words[row.key] for w in split_line(text, box, line)]
        return self._images(row), [words]


def _beside(
    folder: Path, part: str, stem: str, suffixes: tuple[str, ...], present: set[str], name: str
) -> Path:
    """The key or box file of a scan, with whichever ending it has."""
    for suffix in suffixes:
        if f"{stem}.{suffix}" in present:
            return folder / part / f"{stem}.{suffix}"
    missing = folder / part / f"{stem}.{suffixes[0]}"
    raise DataError(f"{folder / 'img' / name}: {missing} is missing")


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
    from ...documents.words import Word

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


class PDFBenchmark(Benchmark):
    """A benchmark over PDFs: records have the first ``max_pages`` pages at ``dpi``.

    A field may stand on a later page.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        max_pages: int | None = 3,
        dpi: float = 144,
        ask_empty: bool = False,
    ) -> None:
        if max_pages is not None and max_pages < 1:
            raise DataError(f"{self.key}: max_pages must be at least 1, not {max_pages}")
        self.max_pages, self.dpi, self.ask_empty = max_pages, dpi, ask_empty
        super().__init__(root, split)

    def settings(self) -> dict[str, Any]:
        return {"max_pages": self.max_pages, "dpi": self.dpi}

    @abstractmethod
    def path(self, row: BenchmarkRow) -> Path:
        """The PDF of a row."""

    def _check(self, row: BenchmarkRow) -> None:
        pdf_page_count(self.path(row))

    def _images(self, row: BenchmarkRow) -> list[Image.Image]:
        return load_pages(self.path(row), dpi=self.dpi, max_pages=self.max_pages)

    def _pages(self, row: BenchmarkRow) -> tuple[list[Image.Image], list[list[Word]]]:
        images = self._images(row)
        path = self.path(row)
        return images, [pdf_words(path, page, dpi=self.dpi) for page in range(len(images))]


class DeepFormSource(PDFBenchmark):
    """DeepForm (Svetlichnaya, 2020): five fields of political-advertising contracts in PDF.

    Layout: ``{split}/pdfs/{file_id}.pdf`` and ``{split}/labels.csv``. Empty fields are only asked
    for with ``ask_empty``. Records have the words of the PDFs' text layers.
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

    def path(self, row: BenchmarkRow) -> Path:
        return self.root / self.split / "pdfs" / row.key

    def _read(self) -> Iterator[BenchmarkRow]:
        path = self.root / self.split / "labels.csv"
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        self._labels(path, {s: self.root / s / "labels.csv" for s in self.splits})
        columns = ("file_id", *self.questions)
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise DataError(f"{path}:1: no column {column!r}; needs {', '.join(columns)}")
        present = names_in(self.root / self.split / "pdfs")
        ids: dict[str, int] = {}
        try:
            for cells in reader:
                yield from self._contract(cells, path, reader.line_num, present, ids)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.reader.line_num}: {error}") from error

    def _contract(
        self, cells: dict[str, Any], path: Path, line: int, present: set[str], ids: dict[str, int]
    ) -> Iterator[BenchmarkRow]:
        where, file_id = f"{path}:{line}", cells["file_id"]
        if None in cells or None in cells.values():
            raise DataError(f"{where}: not as many columns as the first line has")
        unique(file_id, ids, path, line)
        if f"{file_id}.pdf" not in present:
            name = f"{file_id}.pdf"
            others = {s: self.root / s / "pdfs" / name for s in self.splits}
            why = self._missing("PDF", self.root / self.split / "pdfs" / name, others)
            raise DataError(f"{where}: {why}")
        for field, question in self.questions.items():
            value = cells[field].strip()
            if value or self.ask_empty:
                answers = (value,) if value else ()
                yield BenchmarkRow(f"{file_id}/{field}", f"{file_id}.pdf", question, answers, where)
