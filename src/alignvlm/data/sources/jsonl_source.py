"""A file of records, one a line or as a JSON list, as a source."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

from ...errors import DataError
from ..json_list import is_json_list, list_entries
from ..records import Record, validate_record
from .source import check_index, named


class JsonlSource:
    """One JSON object per line, or a JSON list of them, in any form that
    :mod:`alignvlm.data.records` accepts.

    Opening only notes where records start; each is validated when it is read. Image paths are
    relative to the file's folder. Errors name ``file:row`` with the line number an editor shows; of
    a list, the number of the entry.

    Raises:
        DataError: no such file, or a file without a single record.
    """

    def __init__(
        self, path: str | Path, *, require_answer: bool = True, name: str | None = None
    ) -> None:
        self.path = Path(path)
        self.name = name or self.path.stem
        self.require_answer = require_answer
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        self._offsets, self._ends, self._rows = array("Q"), array("Q"), array("Q")
        if is_json_list(self.path):
            self._offsets, self._ends = list_entries(self.path)
            self._rows = array("Q", range(1, len(self._offsets) + 1))
        else:
            self._note_lines()
        if not self._rows:
            raise DataError(f"{self.path}: no records (the file is empty)")

    def _note_lines(self) -> None:
        with open(self.path, "rb") as file:
            offset = 0
            for row, line in enumerate(file, start=1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    self._offsets.append(offset)
                    self._ends.append(offset + len(line))
                    self._rows.append(row)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Read and validate one record; raises DataError that starts with ``file:row``."""
        index = check_index(index, len(self), self.name)
        where = f"{self.path}:{self._rows[index]}"
        with open(self.path, "rb") as file:  # opened per read: safe in forked workers
            file.seek(self._offsets[index])
            line = file.read(self._ends[index] - self._offsets[index])
        try:
            obj = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text: {error}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        record = validate_record(
            obj, where=where, base_dir=self.path.parent, require_answer=self.require_answer
        )
        return named(record, self.name)
