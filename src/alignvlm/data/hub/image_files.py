"""The picture that a row names by its path: in a folder, or in an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...documents.pictures import PICTURE_SUFFIXES
from ...errors import DataError
from .archives import archives_in, inside, is_archive, members, reading, unpacked

WINDOW = 100_000
"""Rows that wait at once for their images, where these come in the order of an archive."""
ANY_ARCHIVE = ("*.zip", "*.tar", "*.tar.gz", "*.tgz")


class ImageFiles:
    """Pictures of a data set by the paths or names that its rows have for them.

    Args:
        name: the set's; what is unpacked is kept under it.
        roots: folders that paths start from.
        archives: archives, as their parts, that are unpacked when no root has a picture.
        folders: folders inside the archives that paths may start from.
        by_stem: rows name pictures without folder or ending.
        absolute: paths may be absolute, of a set that is the user's own.
    """

    def __init__(
        self,
        name: str,
        roots: Sequence[Path],
        archives: Sequence[Sequence[Path]] = (),
        folders: Sequence[str] = (".",),
        *,
        by_stem: bool = False,
        absolute: bool = False,
    ) -> None:
        self.absolute = absolute
        self.name, self.roots, self.archives = name, list(roots), list(archives)
        self.folders, self.by_stem = tuple(folders), by_stem
        self._stems: dict[str, Path] | None = None
        self._packed = bool(self.archives)

    def find(self, path: str) -> Path:
        """The file of a picture. Archives are unpacked if the first one is in no root: of a set
        that was unpacked by hand, a missing picture does not unpack the rest again.

        Raises:
            DataError: no such picture, or a path that leads out of the set.
        """
        if self.absolute and Path(path).is_absolute():
            return Path(path)
        path = inside(path, self.roots[0] if self.roots else self.archives[0][0])
        found = self._look(path)
        if found is None and self._packed:
            target = unpacked(self.archives, self.name)
            self.roots += [target / folder for folder in self.folders]
            self._stems = None
            found = self._look(path)
        self._packed = False
        if found is None:
            raise DataError(f"no image {path} below {', '.join(map(str, self.roots))}")
        return found

    def _look(self, path: str) -> Path | None:
        for root in self.roots:
            if (root / path).is_file():
                return root / path
        return self._by_stem().get(stem_of(path)) if self.by_stem else None

    def _by_stem(self) -> dict[str, Path]:
        if self._stems is None:
            walked = (found for root in self.roots for found in os.walk(root))
            pictures = (Path(folder, n) for folder, _, names in walked for n in names)
            self._stems = {path.stem: path for path in pictures if is_picture(path.name)}
        return self._stems

    def is_here(self, path: str) -> bool:
        """Whether a picture can be had without unpacking anything."""
        return self._look(inside(path, Path(self.name))) is not None


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def stem_of(name: str) -> str:
    """A picture's name without folder and ending; other dots belong to the name."""
    return Path(name).stem if is_picture(name) else Path(name).name


def images_at(place: Path, name: str) -> ImageFiles:
    """The pictures of a folder, of the archives in it, or of one archive.

    Raises:
        DataError: nothing is there, or a file that is no archive.
    """
    if place.is_dir():
        return ImageFiles(name, [place], archives_in(place, ANY_ARCHIVE), by_stem=True)
    if not place.is_file():
        raise DataError(f"{place}: no such folder or archive of images")
    if not is_archive(place):
        raise DataError(f"{place}: not an archive of images; give a folder, a zip or a tar")
    return ImageFiles(name, [], [[place]], by_stem=True)


def with_images(
    rows: Iterable[dict[str, Any]],
    paths_of: Callable[[dict[str, Any]], list[str]],
    files: ImageFiles,
) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Rows with the content of their images, read from archives that stay packed.

    A row comes when the last of its images has: the order is the archives'. Rows without images
    come after the others. Each :data:`WINDOW` of rows takes one pass over the archives.

    Yields:
        The row's number, the row, and ``{"bytes": ...}`` by the path that the row has.

    Raises:
        DataError: an archive is damaged, or has not all images.
    """
    numbered = enumerate(rows)
    while window := list(islice(numbered, WINDOW)):
        waiting: dict[int, dict[str, Any]] = {number: {} for number, _ in window}
        wanted: dict[str, list[tuple[int, str]]] = {}
        own = dict(window)
        for number, row in window:
            for path in paths_of(row):
                waiting[number][path] = None
                wanted.setdefault(_key(path, files), []).append((number, path))
        without = [number for number, images in waiting.items() if not images]
        for number in without:
            del waiting[number]
        yield from _arriving(wanted, waiting, own, files)
        yield from ((number, own[number], {}) for number in without)
        if waiting:
            number, images = next(iter(waiting.items()))
            path = next(path for path, content in images.items() if content is None)
            archives = ", ".join(str(parts[0]) for parts in files.archives)
            raise DataError(f"{files.name}: row {number}: no image {path} in {archives}")


def _key(path: str, files: ImageFiles) -> str:
    path = inside(path, Path(files.name))
    return stem_of(path) if files.by_stem else path


def _arriving(
    wanted: dict[str, list[tuple[int, str]]],
    waiting: dict[int, dict[str, Any]],
    own: dict[int, dict[str, Any]],
    files: ImageFiles,
) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    for parts in files.archives:
        for name, file in members(parts):
            rows = wanted.pop(_member_key(name, wanted, files), [])
            with reading(parts[0]):
                content = {"bytes": file.read(), "path": None} if rows else None
            for number, path in rows:
                waiting[number][path] = content
                if all(waiting[number].values()):
                    yield number, own[number], waiting.pop(number)
            if not waiting:
                return


def _member_key(name: str, wanted: dict[str, Any], files: ImageFiles) -> str:
    """The key that a member has among those wanted, from any of the folders paths start from."""
    if files.by_stem:
        return stem_of(name) if is_picture(name) else ""
    for folder in files.folders:
        key = name.removeprefix(f"{folder}/")
        if key in wanted:
            return key
    return ""
