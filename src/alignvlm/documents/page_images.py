"""Pages of files, folders and standard input, each knowing where it came from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..errors import DataError
from ..processing.image_processor import MAX_PIXELS
from .opening import SUFFIXES, is_hidden, open_document, parse_pages, spell_pages

STDIN = "-"
"""The file name that stands for standard input."""
STDIN_NAME = "stdin"
"""What its pages and its errors are called."""


@dataclass(frozen=True)
class PageImage:
    """A page and where it came from.

    Attributes:
        image: RGB.
        file: as it was named, or ``stdin``.
        page: 1 for the first one.
        scale: px of ``image`` per PDF point (1/72 inch); None for a picture.
    """

    image: Image.Image
    file: str
    page: int
    scale: float | None = None


@dataclass(frozen=True)
class PageChoice:
    """Pages of one file that were chosen, and those that ``max_pages`` left out; 0-based."""

    file: str
    chosen: list[int]
    left_out: list[int]


class Pages:
    """Pages of files, folders and standard input; each is rendered when it is its turn.

    Going through it gives :class:`PageImage` and can be repeated: pages are read again, so a
    thousand of them need no more memory than one.

    Args:
        paths: files, folders (searched with all that lies in them, by name), ``-`` for stdin.
        dpi: resolution PDFs are rendered at, px per inch.
        pages: selection in each file such as ``"1-3,5"``; default: all.
        password: opens encrypted PDFs.
        max_pages: use only so many pages, of all files together; see :attr:`left_out`.
        max_pixels: refuse a picture that is larger, and render a PDF's page at fewer.
        pdf_pixels: render a PDF's page at no more, where finer pages are of no use; can be set
            later, when it is known who looks at them.
        stdin: where ``-`` is read from; default: this process's standard input.
        passed_over: told of each file of a folder that cannot be read, once, with the reason.
        keep_going: pass over files that were named outright, too; see :meth:`named_unreadable`.

    Attributes:
        files: all of them, in order.
        unreadable: files that cannot be read and were passed over, with the reason, as far as pages
            have been counted and gone through: those found in folders, for one damaged file does
            not end a folder, and with ``keep_going`` all.

    Raises:
        DataError: here, a folder without documents or ``-`` twice; when pages are counted or
            rendered, what :func:`.opening.load_pages` refuses of a file that was named outright,
            or where no file of the folders can be read.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        dpi: float = 144,
        pages: str | None = None,
        password: str | None = None,
        max_pages: int | None = None,
        max_pixels: int = MAX_PIXELS,
        pdf_pixels: int | None = None,
        stdin: BinaryIO | None = None,
        passed_over: Callable[[str], None] | None = None,
        keep_going: bool = False,
    ) -> None:
        if max_pages is not None and max_pages < 1:
            raise DataError(f"max_pages must be at least 1, not {max_pages}")
        if sum(str(path) == STDIN for path in paths) > 1:
            raise DataError("standard input (-) can be read only once: name it once")
        self.dpi, self.pages, self.password = dpi, pages, password
        self.max_pages, self.max_pixels, self.pdf_pixels = max_pages, max_pixels, pdf_pixels
        self.files = [file for path in paths for file in list_files(path)]
        named = set(map(str, paths))
        self._found = {file for file in self.files if file not in named}
        self.unreadable: dict[str, str] = {}
        self._passed_over, self._keep_going = passed_over, keep_going
        self._stdin, self._read = stdin, None

    def _data(self, file: str) -> bytes | None:
        if file != STDIN:
            return None
        if self._read is None:
            self._read = (self._stdin or sys.stdin.buffer).read()
        return self._read

    def _open(self, file: str):
        data = self._data(file)
        name = file if data is None else STDIN_NAME
        return open_document(name, data=data, password=self.password, pdf_pixels=self.pdf_pixels)

    @cached_property
    def plan(self) -> list[PageChoice]:
        """What is gone through; files are opened to count their pages, none is rendered."""
        plan, room = [], sys.maxsize if self.max_pages is None else self.max_pages
        for file in self.files:
            with self._passing_over(file), self._open(file) as document:
                where = str(document.path)
                asked = parse_pages(self.pages, document.count, where=where)
                plan.append(PageChoice(file, asked[:room], asked[room:]))
                room -= len(plan[-1].chosen)
        if not plan:
            raise self._nothing()
        return plan

    def _nothing(self) -> DataError:
        return DataError(f"no file can be read; the first: {next(iter(self.unreadable.values()))}")

    @contextmanager
    def _passing_over(self, file: str) -> Iterator[None]:
        """Note what is wrong with a file that may be passed over."""
        try:
            yield
        except DataError as error:
            found = file in self._found
            if not (found or self._keep_going):
                raise
            if found and file not in self.unreadable and self._passed_over is not None:
                self._passed_over(str(error))
            self.unreadable[file] = str(error)

    def named_unreadable(self) -> list[str]:
        """What is wrong with files that were named outright and passed over."""
        return [why for file, why in self.unreadable.items() if file not in self._found]

    def __len__(self) -> int:
        return sum(len(choice.chosen) for choice in self.plan)

    def __iter__(self) -> Iterator[PageImage]:
        given = 0
        for choice in self.plan:
            if not choice.chosen:
                continue
            with self._passing_over(choice.file), self._open(choice.file) as document:
                for index in choice.chosen:
                    image = document.render(index, self.dpi, self.max_pixels)
                    scale = document.scale(index, self.dpi, self.max_pixels)
                    given += 1
                    yield PageImage(image, str(document.path), index + 1, scale)
        if not given and self.unreadable:
            raise self._nothing()

    @property
    def left_out(self) -> str | None:
        """The pages that ``max_pages`` left out, in one line; None: there are none."""
        parts = [choice for choice in self.plan if choice.left_out]
        if not parts:
            return None
        count = sum(len(choice.left_out) for choice in parts)
        named = [f"{choice.file} {_numbers(choice.left_out)}" for choice in parts[:3]]
        more = f" and {len(parts) - 3} more files" if len(parts) > 3 else ""
        return (
            f"{count} of {count + len(self)} pages left out: {'; '.join(named)}{more} "
            "(choose with --pages, or raise --max-pages)"
        )


def _numbers(indices: list[int]) -> str:
    return f"{'page' if len(indices) == 1 else 'pages'} {spell_pages([i + 1 for i in indices])}"


def list_files(path: str | Path) -> list[str]:
    """The file itself, or all pictures and PDFs that lie in a folder, by name.

    What is hidden (``._page.png``, ``.cache/``) is no document.

    Raises:
        DataError: there are none in the folder.
    """
    if str(path) == STDIN or not Path(path).is_dir():
        return [str(path)]
    folder = Path(path)
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not is_hidden(file.relative_to(folder))
        and file.is_file()
    )
    if not found:
        raise DataError(f"{path}: no PDF and no picture in this folder")
    return [str(file) for file in found]
