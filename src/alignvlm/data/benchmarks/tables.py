"""Public document benchmarks, read from their official file layouts in a folder the user names.

Opening a benchmark reads its questions and checks that every table, image and PDF they name is
there; nothing is decoded or rendered until a record is asked for. Tables (WikiTableQuestions,
TabFact) become page images through :func:`alignvlm.data.synthetic.render.render_table`, PDFs
through :mod:`alignvlm.documents.opening`. ``source.row(i).answers`` are the accepted ones.
"""

from __future__ import annotations

import functools
import inspect
import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...documents.opening import read_json, read_text
from ...errors import DataError
from .benchmark import Benchmark, BenchmarkRow, names_in, string_of, unique, verify_image
from .forms import DeepFormSource, SROIESource

if TYPE_CHECKING:
    from ...documents.words import Word
    from ..synthetic.corpus import Table


class _Tables(Benchmark):
    """A benchmark over tables; ``render`` has options for :func:`render_table`."""

    def __init__(self, root: str | Path, split: str, **render: Any) -> None:
        super().__init__(root, split)
        self.render = render

    def table(self, index: int) -> Table:
        """Return the table of question ``index``."""
        return self._table(self.row(index))

    def settings(self) -> dict[str, Any]:
        from ..synthetic.fonts import plain_font
        from ..synthetic.render import render_table

        options = list(inspect.signature(render_table).parameters.values())[1:]
        made = {option.name: self.render.get(option.name, option.default) for option in options}
        if made["font_path"] is None:  # which font that is depends on what is installed
            made["font_path"] = Path(plain_font()).name
        return made

    @abstractmethod
    def _table(self, row: BenchmarkRow) -> Table:
        """Read the table."""

    def _check(self, row: BenchmarkRow) -> None:
        self._table(row)

    def _pages(self, row: BenchmarkRow) -> tuple[list[Image.Image], list[list[Word]]]:
        from ..synthetic.render import render_table

        page = render_table(self._table(row), **self.render)
        return [page.image], [list(page.words)]


class WTQSource(_Tables):
    """WikiTableQuestions (Pasupat & Liang, 2015): questions over rendered tables.

    Layout: ``data/random-split-1-{train,dev}.tsv``, ``data/pristine-unseen-tables.tsv`` (test) and
    the tables under ``csv/``. A list answer is written ``a|b``. Where the official tagged files
    (``tagged/data/*.tagged``) are there, :meth:`references` adds each item's canonical value after
    a tab, as the official evaluator reads it (12,467 is then the number 12467.0).
    """

    key = "wtq"
    splits = ("train", "dev", "test")
    columns = ("id", "utterance", "context", "targetValue")

    def _path(self, split: str) -> Path:
        name = "pristine-unseen-tables.tsv" if split == "test" else f"random-split-1-{split}.tsv"
        return self.root / "data" / name

    def _read(self) -> Iterator[BenchmarkRow]:
        path = self._labels(self._path(self.split), {s: self._path(s) for s in self.splits})
        lines = read_text(path).split("\n")
        if lines[0].rstrip("\r").split("\t") != list(self.columns):
            raise DataError(f"{path}:1: the columns must be {', '.join(self.columns)}")
        ids: dict[str, int] = {}
        found: set[str] = set()
        for number, line in enumerate(lines[1:], start=2):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) != len(self.columns):
                expected = f"expected {len(self.columns)}"
                raise DataError(f"{path}:{number}: {len(cells)} columns, {expected}")
            row_id, question, table, target = cells
            unique(row_id, ids, path, number)
            if table not in found and not (self.root / table).is_file():
                raise DataError(f"{path}:{number}: table not found: {self.root / table}")
            found.add(table)
            answers = tuple(_unescape(item) for item in target.split("|"))
            if not question.strip() or not all(item.strip() for item in answers):
                raise DataError(f"{path}:{number}: empty question or answer")
            yield BenchmarkRow(row_id, table, _unescape(question), answers, f"{path}:{number}")

    def references(self, row: BenchmarkRow) -> tuple[str, ...]:
        values = self._canonical.get(row.id, ())
        if not values:
            return row.answers
        if len(values) != len(row.answers):
            raise DataError(f"{row.where}: {len(row.answers)} items, {len(values)} in targetCanon")
        return tuple("\t".join(pair) for pair in zip(row.answers, values, strict=True))

    @functools.cached_property
    def _canonical(self) -> dict[str, tuple[str, ...]]:
        """Canonical values by id; empty without the tagged file."""
        path = self.root / "tagged" / "data" / f"{self._path(self.split).stem}.tagged"
        if not path.is_file():
            return {}
        self.label_files.append(path)
        lines = [line.rstrip("\r").split("\t") for line in read_text(path).split("\n") if line]
        if not {"id", "targetCanon"} <= set(lines[0]):
            raise DataError(f"{path}:1: no columns id and targetCanon")
        row_id, canon = lines[0].index("id"), lines[0].index("targetCanon")
        found: dict[str, tuple[str, ...]] = {}
        for number, cells in enumerate(lines[1:], start=2):
            if len(cells) <= max(row_id, canon):
                raise DataError(f"{path}:{number}: {len(cells)} columns, expected {len(lines[0])}")
            found[cells[row_id]] = tuple(_unescape(item) for item in cells[canon].split("|"))
        return found

    def check_files(self) -> None:
        super().check_files()
        for row in self.rows:
            self.references(row)
        ids = {row.id: row.where for row in self.rows}
        for split in self.splits:
            other = self._path(split)
            if split != self.split and other.is_file():
                theirs = {line.split("\t", 1)[0] for line in read_text(other).split("\n")[1:]}
                if (shared := next((i for i in ids if i in theirs), None)) is not None:
                    raise DataError(
                        f"{ids[shared]}: id {shared!r} is in {other} as well: does it belong to "
                        f"split {split!r}?"
                    )

    def _table(self, row: BenchmarkRow) -> Table:
        from ..synthetic.corpus import table_from_csv

        return table_from_csv(self.root / row.key)


class TabFactSource(_Tables):
    """TabFact (Chen et al., 2020): is a statement supported by a rendered table, yes or no.

    Layout: ``tokenized_data/{train,val,test}_examples.json`` (table id to statements, labels and
    caption) and ``data/all_csv`` (cells separated by ``#``). Where the official lists of table ids
    (``data/{train,val,test}_id.json``) are there, the tables must be on the split's own.
    """

    key = "tabfact"
    splits = ("train", "val", "test")
    prompt = "Is this statement supported by the table? {} Answer yes or no."

    def _path(self, split: str) -> Path:
        return self.root / "tokenized_data" / f"{split}_examples.json"

    def _read(self) -> Iterator[BenchmarkRow]:
        path = self._labels(self._path(self.split), {s: self._path(s) for s in self.splits})
        examples = read_json(path)
        present = names_in(self.root / "data" / "all_csv")
        if not isinstance(examples, dict):
            raise DataError(f"{path}: expected an object from table id to statements and labels")
        listed = self._listed()
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
            if (split := listed.get(table, self.split)) != self.split:
                raise DataError(
                    f"{where}: on the list data/{split}_id.json: does it belong to split {split!r}?"
                )
            self._captions[table] = str(caption)
            for number, (text, label) in enumerate(zip(statements, labels, strict=True)):
                at = f"{where}: statement {number + 1}"
                if label not in (0, 1) or not isinstance(text, str) or not text.strip():
                    raise DataError(f"{at}: needs a text and a label 0 or 1")
                yield BenchmarkRow(
                    f"{table}/{number}", table, text, ("yes" if label else "no",), at
                )

    def _listed(self) -> dict[str, str]:
        """Table ids on the official lists, to the split of the list."""
        found: dict[str, str] = {}
        for split in self.splits:
            path = self.root / "data" / f"{split}_id.json"
            if path.is_file():
                ids = read_json(path)
                if not isinstance(ids, list):
                    raise DataError(f"{path}: expected a list of table ids")
                found.update(dict.fromkeys(map(str, ids), split))
        return found

    def check_files(self) -> None:
        super().check_files()
        for split in self.splits:
            other = self._path(split)
            if split == self.split or not other.is_file():
                continue
            try:
                theirs = set(json.loads(read_text(other)))
            except (ValueError, TypeError):
                continue  # that split's own trouble
            if (shared := next((t for t in self._captions if t in theirs), None)) is not None:
                raise DataError(
                    f"{self._path(self.split)}: table {shared!r} is in {other} as well: does it "
                    f"belong to split {split!r}?"
                )

    def _table(self, row: BenchmarkRow) -> Table:
        from ..synthetic.corpus import table_from_csv

        path = self.root / "data" / "all_csv" / row.key
        return table_from_csv(path, delimiter="#", title=self._captions[row.key])


class ChartQASource(Benchmark):
    """ChartQA (Masry et al., 2022): questions over chart images.

    Layout: ``{split}/png`` and ``{split}/{split}_human.json``, ``{split}/{split}_augmented.json``,
    whichever of the two there are.
    """

    key = "chartqa"
    splits = ("train", "val", "test")

    def _read(self) -> Iterator[BenchmarkRow]:
        folder = self.root / self.split
        parts = ("human", "augmented")
        paths = [folder / f"{self.split}_{part}.json" for part in parts]
        if not any(path.is_file() for path in paths):
            raise DataError(f"neither {paths[0]} nor {paths[1]} exists")
        present = names_in(folder / "png")
        for part, path in zip(parts, paths, strict=True):
            if not path.is_file():
                continue
            self._labels(path, {s: self.root / s / f"{s}_{part}.json" for s in self.splits})
            items = read_json(path)
            if not isinstance(items, list):
                raise DataError(f"{path}: expected a list of questions")
            for number, item in enumerate(items, start=1):
                row = [string_of(item, key, path, number) for key in ("imgname", "query", "label")]
                if row[0] not in present:
                    others = {s: self.root / s / "png" / row[0] for s in self.splits}
                    why = self._missing("image", folder / "png" / row[0], others)
                    raise DataError(f"{path}:{number}: {why}")
                where = f"{path}:{number}"
                yield BenchmarkRow(f"{path.stem}/{number - 1}", row[0], row[1], (row[2],), where)

    def _check(self, row: BenchmarkRow) -> None:
        verify_image(self.root / self.split / "png" / row.key)

    def _pages(self, row: BenchmarkRow) -> tuple[list[str], None]:
        return [str(self.root / self.split / "png" / row.key)], None


def _unescape(text: str) -> str:
    """Undo the escapes of WikiTableQuestions: backslash n, p (a bar) and backslash."""
    return text.replace(r"\n", "\n").replace(r"\p", "|").replace("\\\\", "\\")


BENCHMARKS: dict[str, type[Benchmark]] = {
    source.key: source
    for source in (WTQSource, TabFactSource, ChartQASource, SROIESource, DeepFormSource)
}
"""Every benchmark by name."""
