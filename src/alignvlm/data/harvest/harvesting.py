"""Folders of documents to ``records.jsonl``: the loop that :mod:`.from_pdf` and :mod:`.from_scans`
share.

An output folder holds ``records.jsonl``, the page images under ``pages/``, and under ``parts/`` the
records of each finished file, which is what a rerun goes on from. Every file is written beside its
place and renamed into it. What comes out depends on the files and the settings alone, not on how
often the run was interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...documents.opening import is_hidden, spell_pages
from ...documents.words import Word
from ...errors import DataError
from ...files import file_sha256, replacing, write_text
from ..records import make_record, transcript
from ..sources import TRANSCRIBE_QUESTION
from .unread import Box, unread_ink

FORMAT = 2
"""Of the parts; raised when the same file and settings would give other records."""
JPEG_QUALITY = 92


class PageFound(NamedTuple):
    """A page that can be learnt from.

    Attributes:
        image: the page, RGB.
        words: what is written on it, boxes in px of ``image``.
        photo: it is a scan, which PNG would not make smaller.
        dropped: words left out, by reason.
    """

    image: Image.Image
    words: list[Word]
    photo: bool
    dropped: Counter[str]


Read = Callable[[Path], Iterator[tuple[int, PageFound | str]]]
"""Yields each page's number (from 1) and the page, or why it is skipped; raises
:class:`DataError` for a file that cannot be used at all."""


@dataclass
class Harvest:
    """What a folder gave.

    Attributes:
        records: the JSONL file.
        files: how many files were looked at.
        pages, words: how many are in the records.
        skipped_files: name and reason.
        skipped_pages: name, page number and reason.
        dropped: words left out of the pages, by reason.
    """

    records: Path
    files: int = 0
    pages: int = 0
    words: int = 0
    skipped_files: list[tuple[str, str]] = field(default_factory=list)
    skipped_pages: list[tuple[str, int, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "records": str(self.records),
            "files": self.files,
            "pages": self.pages,
            "words": self.words,
            "skipped_files": [{"file": f, "reason": r} for f, r in self.skipped_files],
            "skipped_pages": [
                {"file": f, "page": p, "reason": r} for f, p, r in self.skipped_pages
            ],
            "words_left_out": dict(sorted(self.dropped.items())),
        }

    def to_text(self) -> str:
        """One line for each thing skipped, then the counts."""
        lines = [f"skipped {file}: {reason}" for file, reason in self.skipped_files]
        groups: dict[tuple[str, str], list[int]] = {}
        for file, page, reason in self.skipped_pages:
            groups.setdefault((file, reason), []).append(page)
        for (file, reason), pages in groups.items():
            word = "page" if len(pages) == 1 else "pages"
            lines.append(f"skipped {file}, {word} {spell_pages(pages)}: {reason}")
        if self.dropped:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.items()))
            lines.append(f"words left out: {reasons}")
        lines.append(
            f"{self.records}: {self.pages} pages with {self.words} words from "
            f"{self.files - len(self.skipped_files)} of {self.files} files"
        )
        return "\n".join(lines)


def find_files(folder: Path, suffixes: Sequence[str], *, without: Path) -> list[tuple[str, Path]]:
    """Files with these endings below a folder (or the one file named), by name.

    Args:
        without: a folder whose files do not count: the output may lie within the input.

    Returns:
        The name within the folder, with ``/``, and the path.

    Raises:
        DataError: no such folder, or nothing in it.
    """
    if folder.is_file():
        return [(folder.name, folder)]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    without = without.resolve()
    found = [
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not is_hidden(path.relative_to(folder))
        and path.is_file()
        and without not in path.resolve().parents
    ]
    if not found:
        raise DataError(f"{folder}: no file that ends in {', '.join(suffixes)}")
    return sorted(found)


def harvest(
    files: Sequence[tuple[str, Path]],
    out: Path,
    read: Read,
    settings: dict[str, Any],
    *,
    source: str,
    progress: bool = False,
) -> Harvest:
    """Turn files into records, or go on where an interrupted run stopped.

    Args:
        files: see :func:`find_files`.
        out: folder; new, empty, or of an earlier run with the same settings.
        read: makes pages of a file.
        settings: whatever the records depend on besides the files.
        source: the records' ``source``.
        progress: show a bar on stderr.

    Raises:
        DataError: ``out`` is something else or of other settings, or no page can be used.
        OSError: the disk is full; the same call goes on later.
    """
    _claim(out, {"format": FORMAT, "source": source, **settings})
    result, parts, seen = Harvest(out / "records.jsonl", len(files)), [], {}
    with tqdm(total=len(files), desc=source, unit="file", disable=not progress) as bar:
        for name, path in files:
            part = out / "parts" / f"{name}.jsonl"
            try:
                digest = _digest(name, path)
                if digest in seen:
                    raise DataError(f"the same file as {seen[digest]}")
                seen[digest] = name
                if _head(part).get("sha256") != digest:
                    _make_part(name, path, out, part, digest, read, source, bar)
                _count(result, name, _head(part))
                parts.append(part)
            except DataError as error:
                reason = str(error).removeprefix(f"{path}: ")
                result.skipped_files.append((name, reason))
            bar.update()
    if not result.pages:
        raise DataError(_nothing(result))
    with replacing(result.records) as partial, open(partial, "wb") as file:
        for part in parts:
            with open(part, "rb") as records:
                records.readline()
                shutil.copyfileobj(records, file)
    return result


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Note the settings in a new folder, or check those of an old one."""
    note, settings = out / "harvest.json", json.loads(json.dumps(settings))
    if note.is_file():
        try:
            old = json.loads(note.read_text("utf-8"))
        except ValueError as error:
            raise DataError(f"{note}: not JSON; remove {out} and start over") from error
        for key in settings:
            if old.get(key) != settings[key]:
                raise DataError(
                    f"{out} was made with {key} = {old.get(key)!r}, now {settings[key]!r}; choose "
                    "another --out, or remove that folder"
                )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not the output of an earlier run; choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(settings, indent=1))


def _digest(name: str, path: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError("the file's name is not valid text") from None
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def _head(part: Path) -> dict[str, Any]:
    """First line of a part; empty if there is none."""
    try:
        with open(part, "rb") as file:
            return json.loads(file.readline())
    except (OSError, ValueError):
        return {}


def _make_part(
    name: str,
    path: Path,
    out: Path,
    part: Path,
    digest: str,
    read: Read,
    source: str,
    bar: tqdm[Any],
) -> None:
    """Write a file's page images, then its records at once; no records if it cannot be used."""
    lines: list[str] = []
    skipped: list[tuple[int, str]] = []
    dropped: Counter[str] = Counter()
    words = 0
    for number, found in read(path):
        bar.set_postfix_str(f"{name}, page {number}")
        if isinstance(found, str):
            skipped.append((number, found))
            continue
        image = f"pages/{name}/{number:04d}.{'jpg' if found.photo else 'png'}"
        save_page(found.image, out / image, found.photo)
        unread = unread_ink(found.image, found.words)
        lines.append(_line(f"{name}#{number}", image, found.words, unread, source))
        words += len(found.words)
        dropped += found.dropped
    head = {
        "sha256": digest,
        "pages": len(lines),
        "words": words,
        "skipped": skipped,
        "dropped": dropped,
    }
    part.parent.mkdir(parents=True, exist_ok=True)
    write_text(part, "".join(f"{line}\n" for line in (json.dumps(head), *lines)))


def _line(record_id: str, image: str, words: list[Word], unread: list[Box], source: str) -> str:
    words = [
        Word(
            text=w.text,
            box=tuple(round(v, 2) for v in w.box),  # type: ignore[arg-type]
            line=w.line,
            char_x=tuple(round(x, 2) for x in w.char_x),
        )
        for w in words
    ]
    turn = (TRANSCRIBE_QUESTION, transcript(words))
    record = make_record(record_id, [image], [turn], source=source, words=[words], unread=[unread])
    return json.dumps(record.model_dump(), ensure_ascii=False)


def _count(result: Harvest, name: str, head: dict[str, Any]) -> None:
    result.pages += head["pages"]
    result.words += head["words"]
    result.dropped.update(head["dropped"])
    reasons = {reason for _, reason in head["skipped"]}
    if not head["pages"] and len(reasons) <= 1:
        result.skipped_files.append((name, next(iter(reasons), "no page was chosen")))
    else:
        result.skipped_pages += [(name, page, reason) for page, reason in head["skipped"]]


def _nothing(result: Harvest) -> str:
    first = [f"{name}: {why}" for name, why in result.skipped_files[:1]]
    first += [f"{name}, page {page}: {why}" for name, page, why in result.skipped_pages[:1]]
    return f"none of {result.files} files has a page that can be used ({first[0]})"


def save_page(image: Image.Image, path: Path, photo: bool) -> None:
    """Write a page image as JPEG (photo) or PNG, grey where it has no colour."""
    pixels = np.asarray(image)
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        image = image.getchannel(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        if photo:
            image.save(file, format="JPEG", quality=JPEG_QUALITY)
        else:
            image.save(file, format="PNG")
