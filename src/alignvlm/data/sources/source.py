"""What a source is, apart from any kind of source."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..records import Record


@runtime_checkable
class Source(Protocol):
    """A deterministic, numbered collection of records."""

    name: str

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Return record ``index``; raises IndexError past the end."""
        ...


def check_index(index: int, size: int, name: str) -> int:
    """Return a valid non-negative index (negative ones count from the end) or raise IndexError."""
    position = index + size if index < 0 else index
    if not 0 <= position < size:
        raise IndexError(f"{name}: index {index} is outside 0-{size - 1}")
    return position


def named(record: Record, name: str) -> Record:
    """Return the record with its source's name, unless it has one."""
    return record if record.source else record.model_copy(update={"source": name})
