"""Opening the rows of a data set with ``datasets``: from the hub, or from a copy of it.

Media stay undecoded: an image is decoded once, when its record is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, nearest
from .catalogue import PublishedSet
from .place import is_hub_id, require_hub

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
MEDIA = ("Image", "Pdf", "Video", "Audio")
"""``datasets``' types whose content is left as bytes or a path."""


@dataclass(frozen=True)
class TableName:
    """Which rows are meant.

    Attributes:
        reference: hub id, file, or folder.
        split: split name.
        config: one of the set's configurations.
        data_files: files of the set, by name or glob.
        known: what is known of the set.
        place: its copy; ``None``: it is on the hub.
    """

    reference: str
    split: str = "train"
    config: str | None = None
    data_files: tuple[str, ...] = ()
    known: PublishedSet | None = None
    place: Path | None = None

    @property
    def where(self) -> str:
        """How errors name it."""
        config = "" if self.config is None else f" {self.config}"
        return f"{self.reference}{config}[{self.split}]"

    @property
    def is_one_table(self) -> bool:
        """Whether its copy is a file, or a folder of ``save_to_disk``: no configurations."""
        return self.place is not None and (self.place.is_file() or is_saved(self.place))

    def require_config(self, configs: Sequence[str]) -> None:
        """Refuse a configuration that is missing, or none of ``configs``; names these.

        Raises:
            DataError: it is refused.
        """
        listed = f"it has {', '.join(configs)}" if configs else "see its page"
        if self.config is None:
            raise DataError(f"{self.where}: needs a configuration, config: NAME; {listed}")
        if self.config not in configs:
            hint = nearest(self.config, configs)
            raise DataError(f"{self.where}: no configuration {self.config!r}{hint}; {listed}")

    @property
    def files(self) -> list[str]:
        """Names or globs of the files with the rows; empty: ``datasets`` finds them.

        Raises:
            DataError: the set has no file for this split.
        """
        if self.data_files or self.known is None or not self.known.data_files:
            return list(self.data_files)
        own = self.known.data_files
        if self.split not in own:
            hint = nearest(self.split, own)
            raise DataError(f"{self.where}: no such split{hint}; it has {', '.join(own)}")
        return [own[self.split]]


class RowTable:
    """Rows of a data set by number, media undecoded."""

    def __init__(self, data: Any) -> None:
        self._data = data.with_format("arrow")
        self._features = undecoded(data.features)
        self.column_names: list[str] = data.column_names

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._features.decode_example(self._data[index].to_pylist()[0])


class RowStream:
    """Rows of a data set one after the other, media undecoded; nothing is written."""

    def __init__(self, data: Any) -> None:
        if data.features is None:  # of a JSON list they are known when it has been read
            data = data._resolve_features()
        self._features = undecoded(data.features)
        self._data = data.decode(False)
        self.column_names = list(self._features)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._features.decode_example, self._data)


def undecoded(features: Any) -> Any:
    """Features of ``datasets`` whose media stay bytes or paths."""
    features = deepcopy(features)
    _leave(features)
    return features


def _leave(feature: Any) -> None:
    if isinstance(feature, Mapping):
        for inner in feature.values():
            _leave(inner)
    elif isinstance(feature, list):
        for inner in feature:
            _leave(inner)
    elif type(feature).__name__ in MEDIA:
        feature.decode = False
    elif hasattr(feature, "feature"):
        _leave(feature.feature)


def load_table(name: TableName) -> RowTable:
    """Open rows map-style: those of a hub id are downloaded, and memory-mapped.

    Raises:
        DataError: nothing there, or no such split, configuration or file; names the right ones.
    """
    return RowTable(_load(name, streaming=False))


def load_stream(name: TableName) -> RowStream:
    """Open rows one after the other: of a hub id nothing more is downloaded than is read.

    Raises:
        DataError: as :func:`load_table`.
    """
    return RowStream(_load(name, streaming=True))


def _load(name: TableName, *, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name.where}: needs the datasets package: pip install datasets"
        ) from error
    place = name.place
    if place is None and not is_hub_id(name.reference):
        raise DataError(f"{name.where}: no such file or folder, nor a hub id (owner/name)")
    if place is None and streaming:
        require_hub(name.reference)
    try:
        if place is not None and place.is_file():
            return _one_file(name, place, streaming)
        if place is not None and is_saved(place):
            return _saved(name, place, streaming)
        data_files = {name.split: name.files} if name.files else None
        if place is not None and data_files:
            _require_files(name, place)
        target, config = _folder(name, place)
        return datasets.load_dataset(
            target, config, data_files=data_files, split=name.split, streaming=streaming
        )
    except DataError:
        raise
    except Exception as error:  # datasets raises every kind of error, each with a usable message
        raise DataError(_explain(name, error)) from error


def _folder(name: TableName, place: Path | None) -> tuple[str, str | None]:
    """What ``datasets`` is given: a configuration without a page that declares it is a folder."""
    if place is None:
        return name.reference, name.config
    if name.config and not (place / "README.md").is_file() and (place / name.config).is_dir():
        return str(place / name.config), None
    return str(place.resolve()), name.config


def _one_file(name: TableName, place: Path, streaming: bool) -> Any:
    import datasets

    if place.suffix not in KINDS:
        raise DataError(f"{name.where}: cannot read {place.suffix!r}; use parquet or jsonl")
    files = {name.split: str(place)}
    return datasets.load_dataset(
        KINDS[place.suffix], data_files=files, split=name.split, streaming=streaming
    )


def is_saved(place: Path) -> bool:
    """Whether a folder is one of ``save_to_disk``."""
    return any((place / file).exists() for file in ("state.json", "dataset_dict.json"))


def _saved(name: TableName, place: Path, streaming: bool) -> Any:
    import datasets

    found = datasets.load_from_disk(str(place))
    if isinstance(found, datasets.DatasetDict):
        if name.split not in found:
            hint = nearest(name.split, found)
            raise DataError(f"{name.where}: no such split{hint}; it has {', '.join(found)}")
        found = found[name.split]
    return found.to_iterable_dataset() if streaming else found


def _require_files(name: TableName, place: Path) -> None:
    for pattern in name.files:
        if not any(place.glob(pattern)):
            suffix = "".join(Path(pattern).suffixes[-1:])
            there = sorted(str(path.relative_to(place)) for path in place.rglob(f"*{suffix}"))
            has = f"it has {', '.join(there[:8])}" if there else f"it has no *{suffix} file"
            raise DataError(f"{name.where}: no file {pattern}{nearest(pattern, there)}; {has}")


def _explain(name: TableName, error: Exception) -> str:
    """One line for what ``datasets`` raised; a wrong configuration is told the right ones."""
    text = " ".join(str(error).split())
    if "Config name is missing" in text or "BuilderConfig" in text:
        name.require_config(configurations(name))
    if "all the data_files are invalid" in text:
        return f"{name.where}: the files of this configuration are not there"
    return f"{name.where}: {type(error).__name__}: {text}"


def configurations(name: TableName) -> Sequence[str]:
    """Configurations of a set; none where they cannot be found out."""
    import datasets

    try:
        return datasets.get_dataset_config_names(str(name.place or name.reference))
    except Exception:  # the message is about the configuration, and known without the others
        return name.known.configs if name.known is not None else ()
