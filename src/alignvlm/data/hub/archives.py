"""Archives of images: zip files, tars, and one tar that is split into several files.

A member can lie nowhere but in its archive: one whose name leads out of it, and every link, is
refused.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from filelock import FileLock

from ...errors import DataError
from ...files import replacing
from ...weights.resolve import home

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""Of archives that stand alone; parts of a split one have any name."""


class Parts(io.RawIOBase):
    """Several files read one after the other, as ``cat`` gives them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None or self._paths:
            if self._file is None:
                self._file = open(self._paths.pop(0), "rb")  # noqa: SIM115 - closed at its end
            if count := self._file.readinto(buffer):  # type: ignore[attr-defined]
                return count
            self._file.close()
            self._file = None
        return 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def archives_in(folder: Path, globs: Sequence[str]) -> list[list[Path]]:
    """Archives that lie in a folder, each as its parts in order; most have one.

    Files that a glob finds and whose names are no archive's are the parts of one.
    """
    found: list[list[Path]] = []
    for glob in globs:
        files = sorted(path for path in folder.glob(glob) if path.is_file())
        parts = [path for path in files if not is_archive(path)]
        found += [[path] for path in files if is_archive(path)]
        found += [parts] if parts else []
    return found


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name."""
    return path.name.lower().endswith(SUFFIXES)


def members(parts: Sequence[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file in an archive, in its order; read before the next is asked for.

    Raises:
        DataError: damaged, a member that leads out of it, or a link; names the archive.
    """
    with reading(parts[0]):
        yield from _zip(parts[0]) if zipfile.is_zipfile(parts[0]) else _tar(parts)


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """What Python's readers of archives raise as one line.

    Raises:
        DataError: the archive is damaged.
        OSError: the disk's own errors.
    """
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{archive}: the archive is damaged or incomplete: {reason}") from error
    except RuntimeError as error:  # zipfile's, of an encrypted member
        raise DataError(f"{archive}: {error}") from error


def _zip(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            with archive.open(info) as file:
                yield inside(info.filename, path), file


def _tar(parts: Sequence[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    # a stream: a split or compressed tar has no other order
    with Parts(parts) as raw, tarfile.open(fileobj=io.BufferedReader(raw), mode="r|*") as archive:
        for info in archive:
            if info.isdir():
                continue
            file = archive.extractfile(info) if info.isreg() else None
            if file is None:
                raise DataError(f"{parts[0]}: member {info.name!r} is a link or a device, refused")
            yield inside(info.name, parts[0]), file


def inside(name: str, where: Path) -> str:
    """The name of an archive's member, or a row's path of an image, as a relative path.

    Raises:
        DataError: it is absolute or leads out of its folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise DataError(f"{where}: {name!r} leads out of it, refused")
    return str(path)


def unpacked(archives: Sequence[Sequence[Path]], name: str) -> Path:
    """The folder in the cache that archives were unpacked to; unpacks them the first time.

    Several processes may ask at once; the folder appears whole.

    Raises:
        DataError: an archive is damaged, or a member leads out of it.
        OSError: the disk is full.
    """
    target = home() / "data" / f"{name.replace('/', '--')}-{_fingerprint(archives)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            print(f"{name}: unpacking {len(archives)} archives to {target}", file=sys.stderr)
            with replacing(target) as partial:
                partial.mkdir()
                for parts in archives:
                    _unpack(parts, partial)
    return target


def _unpack(parts: Sequence[Path], folder: Path) -> None:
    for name, file in members(parts):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as copy, reading(parts[0]):
            shutil.copyfileobj(file, copy)


def _fingerprint(archives: Sequence[Sequence[Path]]) -> str:
    """Of names, sizes and times: what lies in archives of terabytes cannot be summed."""
    files = [path for parts in archives for path in parts]
    seen = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return sha256("\n".join(seen).encode()).hexdigest()[:12]
