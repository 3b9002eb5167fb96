"""What every local benchmark shares: rows, the source contract, checks of the files behind a row.

:mod:`alignvlm.data.benchmarks.tables` has the benchmarks themselves.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from PIL import Image

from ...errors import DataError, nearest
from ..columns import formats
from ..records import Record, make_record
from ..sources import check_index

if TYPE_CHECKING:
    from ...documents.words import Word

ANSWER_SEPARATOR = "|"
"""Between the items of a list answer (WikiTableQuestions), as in the official files."""
NO_VALUE = "None"
"""The answer to a question for a field that the document does not have (as mPLUG-DocOwl trains)."""


class BenchmarkRow(NamedTuple):
    """One question: its id, what its page is made from, the text, and the accepted answers.

    ``answers`` is empty for a field the document does not have; ``where`` is ``file:row``.
    """

    id: str
    key: str
    question: str
    answers: tuple[str, ...]
    where: str = ""


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
    prompt: ClassVar[str] = "{}"
    """What a record asks, around the row's question."""

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split, self.name = Path(root), split, f"{self.key}-{split}"
        self.label_files: list[Path] = []
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
        row = self.row(index)
        images, words = self._pages(row)
        answer = ANSWER_SEPARATOR.join(row.answers) or NO_VALUE
        turn = (self.prompt.format(row.question), answer)
        return make_record(row.id, images, [turn], source=self.name, words=words)

    def row(self, index: int) -> BenchmarkRow:
        """Return question ``index`` without its page."""
        return self.rows[check_index(index, len(self), self.name)]

    def references(self, row: BenchmarkRow) -> tuple[str, ...]:
        """Return the answers as the benchmark's metric wants them."""
        return row.answers

    def images(self, index: int) -> list[Any]:
        """Return only the pages of question ``index``: pictures, or paths of picture files."""
        return self._images(self.row(index))

    def settings(self) -> dict[str, Any]:
        """Return what makes the pages besides the files."""
        return {}

    def check_files(self) -> None:
        """Open every table, picture or PDF that a row names (pictures are not decoded).

        Raises:
            DataError: the first that cannot be used; the message starts with the row's place.
        """
        seen: set[str] = set()
        for row in self.rows:
            if row.key not in seen:
                seen.add(row.key)
                try:
                    self._check(row)
                except DataError as error:
                    raise DataError(f"{row.where}: {error}") from error

    @abstractmethod
    def _read(self) -> Iterator[BenchmarkRow]:
        """Yield the questions, checking the layout on the way."""

    @abstractmethod
    def _pages(self, row: BenchmarkRow) -> tuple[list[Any], list[list[Word]] | None]:
        """Return the images and their words."""

    @abstractmethod
    def _check(self, row: BenchmarkRow) -> None:
        """Raise DataError if the row's page cannot be made."""

    def _images(self, row: BenchmarkRow) -> list[Any]:
        return self._pages(row)[0]

    def _labels(self, path: Path, others: dict[str, Path]) -> Path:
        """Note a label file; refuse a copy of another split's (``others``: split to path)."""
        self.label_files.append(path)
        for split, other in others.items():
            if split != self.split and same_file(path, other):
                raise DataError(f"{path}: the same as {other}: does it belong to split {split!r}?")
        return path

    def _missing(self, kind: str, path: Path, others: dict[str, Path]) -> str:
        """Say that a page's file is not there, and whether another split has it."""
        for split, other in others.items():
            if split != self.split and other.is_file():
                return (
                    f"{kind} not found: {path} (there is {other}: does this row belong to "
                    f"split {split!r}?)"
                )
        return f"{kind} not found: {path}"


def verify_image(path: Path) -> None:
    """Raise DataError unless a file starts like a picture of a known format (it is not decoded)."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are checked when the page is loaded
        try:
            with Image.open(path, formats=formats()) as image:
                image.verify()
        except Exception as error:  # decoders raise every kind of error on damaged bytes
            reason = "" if isinstance(error, Image.UnidentifiedImageError) else f": {error}"
            raise DataError(f"{path}: not an image this program can read{reason}") from error


def same_file(one: Path, other: Path) -> bool:
    """Whether two files exist and have the same bytes."""
    if not (one.is_file() and other.is_file()):
        return False
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def names_in(folder: Path) -> set[str]:
    """Names of what is in a folder; raises DataError if there is no such folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return set(os.listdir(folder))


def string_of(item: Any, key: str, path: Path, number: int) -> str:
    """Return ``item[key]`` as a non-empty string (numbers are written out) or raise DataError."""
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}:{number}: {key!r} must be a non-empty string, got {value!r:.40}")
    return value


def unique(row_id: str, seen: dict[str, int], path: Path, row: int) -> None:
    """Note an id; raises DataError if it is empty or was seen before."""
    if not row_id.strip():
        raise DataError(f"{path}:{row}: empty id")
    if row_id in seen:
        raise DataError(f"{path}:{row}: id {row_id!r} is already on row {seen[row_id]}")
    seen[row_id] = row
