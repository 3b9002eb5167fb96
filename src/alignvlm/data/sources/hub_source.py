"""Hugging Face data sets (from the hub, or local copies of them) as sources.

The sets of the paper lie on the hub in nine layouts; :mod:`alignvlm.data.hub.catalogue` knows them.
The ``datasets`` package is imported only when a set is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..columns import Find, column_map, image_paths, row_to_object
from ..hub.archives import archives_in
from ..hub.catalogue import published
from ..hub.image_files import ImageFiles, images_at, with_images
from ..hub.place import fetched, local_copy
from ..hub.rows import TableName, load_stream, load_table
from ..records import Record, validate_record
from .source import check_index, named

FIRST_ROWS = 1000
"""Among which one has an image, if any has."""


class HubSet:
    """Which rows of a data set are meant, and how one becomes a record.

    Args:
        reference: hub id, folder written by ``save_to_disk``, folder of parquet or JSON files, or
            one parquet, JSON, JSONL or CSV file. A copy below ``$ALIGNVLM_DATA`` is taken first.
        split: split name.
        columns: from ``image question answer`` (or ``images messages``), and perhaps ``id``, to
            the set's own column names; ``None`` takes those known of a published set, or columns
            that already have these names.
        config: one of the set's configurations.
        data_files: files of the set, by name or glob, if not all.
        images: folder or archive of the images that its rows name.
        question: asked of every image, for sets of captions or transcriptions.
        require_answer: refuse rows without one.
        name: the records' source.
        download: fetch from the hub what is not here.

    Raises:
        DataError: nothing there, no such configuration or file.
    """

    def __init__(
        self,
        reference: str | Path,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        *,
        config: str | None = None,
        data_files: Sequence[str] = (),
        images: str | None = None,
        question: str | None = None,
        require_answer: bool = True,
        name: str | None = None,
        download: bool = True,
    ) -> None:
        self.reference, self.images = str(reference), images
        self.known = published(self.reference)
        self.name = name or Path(self.reference).name
        self.require_answer = require_answer
        self.question = question
        if question is None and self.known is not None:
            self.question = self.known.question
        self._given_columns = columns
        known, place = self.known, local_copy(self.reference)
        self.table = TableName(self.reference, split, config, tuple(data_files), known, place)
        if known is not None and known.configs and not self.table.is_one_table:
            self.table.require_config(known.configs)
        if place is None and known is not None and known.archives:
            place = fetched(known, self.table.files, download=download)
            self.table = replace(self.table, place=place)

    def columns(self, present: Sequence[str]) -> dict[str, str]:
        """Roles and the table's columns.

        Raises:
            DataError: columns that are missing, or do not make a record.
        """
        given = () if self.question is None else ("question",)
        columns, optional = self._given_columns, ()
        if columns is None and self.known is not None:
            columns, optional = self.known.columns, self.known.optional
        return column_map(columns, present, where=self.table.where, given=given, optional=optional)

    def image_files(self) -> ImageFiles | None:
        """Where the pictures are that rows name; ``None`` where rows hold them.

        Raises:
            DataError: there is nothing where ``images`` leads.
        """
        if self.images is not None:
            place = local_copy(self.images)
            if place is None:
                raise DataError(
                    f"{self.table.where}: no {self.images} in this folder or $ALIGNVLM_DATA: "
                    f"{self._origin()}"
                )
            return images_at(place, f"{self.name}-images")
        place = self.table.place
        if place is None or not place.exists():
            return None
        folder = place if place.is_dir() else place.parent
        if self.known is None:
            return ImageFiles(self.name, [folder], absolute=True)
        if not self.known.archives:
            return None
        found = archives_in(folder, self.known.archives)
        roots = [folder / inner for inner in self.known.image_folders]
        return ImageFiles(self.known.id, roots, found, self.known.image_folders)

    def record(
        self, row: Mapping[str, Any], index: int, columns: Mapping[str, str], find: Find | None
    ) -> Record:
        """A row as a record.

        Raises:
            DataError: it makes none; starts with ``reference[split]:row``.
        """
        where = f"{self.table.where}:{index}"
        obj = row_to_object(row, columns, where=where, find=find)
        if self.question is not None and "messages" not in obj:
            obj.setdefault("question", self.question)
        chat = "messages" in columns or "turns" in columns
        if not chat and obj.get("image") is None and not obj.get("images"):
            config = self.table.config or "these rows"
            raise DataError(
                f"{where}: the set has no images of {config}: {self._origin()}, and name them, "
                "images: FOLDER"
            )
        record = validate_record(obj, where=where, require_answer=self.require_answer)
        return named(record, self.name)

    def _origin(self) -> str:
        """Where images that the set does not have come from."""
        known, config = self.known, self.table.config or ""
        if known is None or config not in known.images_elsewhere:
            return "see the set's page for where its images come from"
        return f"get {known.images_elsewhere[config]}"


class HubSource:
    """A split of a Hugging Face data set, downloaded and memory-mapped, as a map-style source.

    Images in archives are unpacked to the cache (``$ALIGNVLM_HOME/data``) the first time.

    Args:
        reference, split, columns: and the other options, as of :class:`HubSet`.
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
        **options: Any,
    ) -> None:
        self.set = HubSet(reference, split, columns, **options)
        self.reference, self.name, self.limit = self.set.reference, self.set.name, limit
        self._data = load_table(self.set.table)
        self._columns = self.set.columns(self._data.column_names)
        self._files = self.set.image_files()
        self._find = None if self._files is None else self._files.find
        if self._files is not None and self._files.archives:
            self._unpack(self._files)

    def _unpack(self, files: ImageFiles) -> None:
        """Look for the first image now, and not in each worker."""
        for index in range(min(len(self), FIRST_ROWS)):
            for path in image_paths(self._data[index], self._columns):
                files.find(path)
                return

    def __len__(self) -> int:
        return len(self._data) if self.limit is None else min(self.limit, len(self._data))

    def __getitem__(self, index: int) -> Record:
        """Read and validate one row."""
        index = check_index(index, len(self), self.name)
        try:
            row = self._data[index]
        except Exception as error:  # a damaged file inside the data set
            raise DataError(f"{self.set.table.where}:{index}: cannot be read: {error}") from error
        return self.set.record(row, index, self._columns, self._find)


class HubStream:
    """The records of a data set one after the other: nothing is unpacked, and of a hub id no more
    is downloaded than is read.

    Where images lie in archives, records come in the order of these.

    Args:
        reference, split, columns: and the other options, as of :class:`HubSet`.

    Raises:
        DataError: as :class:`HubSource`.
    """

    def __init__(
        self,
        reference: str | Path,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.set = HubSet(reference, split, columns, download=False, **options)
        self.name = self.set.name
        self._rows = load_stream(self.set.table)
        self._columns = self.set.columns(self._rows.column_names)

    def __iter__(self) -> Iterator[Record]:
        files = self.set.image_files()
        if files is None or not files.archives:
            find = None if files is None else files.find
            for index, row in enumerate(self._rows):
                yield self.set.record(row, index, self._columns, find)
            return

        def packed(row: dict[str, Any]) -> list[str]:
            return [p for p in image_paths(row, self._columns) if not files.is_here(p)]

        for index, row, images in with_images(self._rows, packed, files):
            yield self.set.record(row, index, self._columns, partial(_picture, files, images))


def _picture(files: ImageFiles, images: Mapping[str, Any], path: str) -> Any:
    return images[path] if path in images else files.find(path)
