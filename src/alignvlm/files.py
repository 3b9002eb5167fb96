"""Files written whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file of any size, in hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FULL = ("No space left", "os error 28", "PytorchStreamWriter", "inline_container.cc")
"""How safetensors and torch say that a disk is full, in errors of their own."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, also where a library says it in words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC or FULL[0] in str(error)
    return any(words in str(error) for words in FULL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path beside ``path`` to write a file or fill a folder at, which then takes its place.

    Where the block raises, what it wrote is removed and ``path`` is as it was. A full disk is an
    ``OSError`` of ``path``, whichever library met it and wherever.

    Example:
        >>> with replacing(Path("answers.json")) as partial:
        ...     partial.write_text("{}", encoding="utf-8")
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            old = path.with_name(f"{partial.name}.old")
            path.replace(old)
            try:
                partial.replace(path)
            except OSError:
                old.replace(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.replace(path)
    except BaseException as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, for a large folder that nobody else writes at the same time: what a
    killed run has left beside it is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial*"):
        shutil.rmtree(left, ignore_errors=True)
    with replacing(path) as partial:
        yield partial


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all.

    Raises:
        OSError: the file cannot be written; it is as it was.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
