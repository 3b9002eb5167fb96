"""Hugging Face data sets (from the hub, or local copies of them) as sources.

The ``datasets`` package is imported only when a set is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from .columns import column_map, row_to_object
from .records import Record, validate_record
from .source import check_index, named


def load_table(reference: str, split: str) -> Any:
    """Open a hub id, a saved data set, a folder of parquet or JSONL files, or one such file."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{reference}: needs the datasets package: pip install datasets") from error
    where, path = f"{reference}[{split}]", Path(reference)
    try:
        if path.is_file():
            kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
            if path.suffix not in kinds:
                raise DataError(f"{where}: cannot read {path.suffix!r}; use parquet or jsonl")
            kind, files = kinds[path.suffix], {split: str(path)}
            return datasets.load_dataset(kind, data_files=files, split=split)
        saved = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
        if not saved:
            return datasets.load_dataset(reference, split=split)
        found = datasets.load_from_disk(reference)
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                hint = nearest(split, found)
                raise DataError(f"{where}: no such split{hint}; it has {', '.join(found)}")
            found = found[split]
        return found
    except DataError:
        raise
    except Exception as error:  # datasets raises every kind of error, each with a usable message
        raise DataError(f"{where}: {type(error).__name__}: {error}".splitlines()[0]) from error


class HubSource:
    """A split of a Hugging Face data set, downloaded and memory-mapped, as a map-style source.

    Args:
        reference: hub id, folder written by ``save_to_disk``, folder of parquet or JSONL files, or
            one parquet, JSONL or CSV file.
        split: split name.
        columns: from ``image question answer`` (or ``images messages``), and perhaps ``id``, to
            the set's own column names; ``None`` takes columns that already have these names.
        question: asked of every image, for sets of captions or transcriptions.
        limit: keep only the first ``limit`` rows.

    Raises:
        DataError: nothing there, no such split or column; on access, ``reference[split]:row``.
    """

    def __init__(
        self,
        reference: str | Path,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        *,
        limit: int | None = None,
        question: str | None = None,
        require_answer: bool = True,
        name: str | None = None,
    ) -> None:
        self.reference, self.split, self.limit = str(reference), split, limit
        self.question = question
        self.name = name or Path(self.reference).name
        self.require_answer = require_answer
        self._data = load_table(self.reference, split)
        given = () if question is None else ("question",)
        self._columns = column_map(
            columns, self._data.column_names, where=self.reference, given=given
        )

    def __len__(self) -> int:
        return len(self._data) if self.limit is None else min(self.limit, len(self._data))

    def __getitem__(self, index: int) -> Record:
        """Read and validate one row."""
        index = check_index(index, len(self), self.name)
        try:
            row = self._data[index]
        except Exception as error:  # a damaged image or file inside the data set
            where = f"{self.reference}[{self.split}]:{index}"
            raise DataError(f"{where}: cannot be decoded: {error}") from error
        return self._record(row, index)

    def _record(self, row: Mapping[str, Any], index: int) -> Record:
        where = f"{self.reference}[{self.split}]:{index}"
        obj = row_to_object(row, self._columns, where=where)
        if self.question is not None:
            obj.setdefault("question", self.question)
        record = validate_record(obj, where=where, require_answer=self.require_answer)
        return named(record, self.name)
