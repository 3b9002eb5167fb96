"""The documents that visitors have open, in memory alone."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..documents.opening import open_document
from ..errors import DataError
from ..inference.extract import FieldValue
from ..inference.page_text import PageText
from .overlay import PageView

MAX_PIXELS = 40_000_000
MAX_HELD = 300_000_000
"""Pixels of all pages held; the documents that were not used for longest are put away."""
MAX_DOCUMENTS = 32
DPI = 144
_PDFIUM = threading.Lock()
"""PDFium is not thread-safe."""


class OpenDocument:
    """What one visitor has open; a page is drawn when it is first looked at.

    Args:
        name: of the file, as shown.
        data: the file.
        max_pages: the rest is left out.

    Raises:
        DataError: it cannot be opened, or its first page cannot be drawn.
    """

    def __init__(self, name: str, data: bytes, max_pages: int) -> None:
        self.name, self._data = name, data
        self.fields: dict[str, FieldValue] = {}  # found last
        self.texts: dict[int, PageText] = {}  # of the pages read so far
        with self._opened() as document:
            self.count: int = document.count
        self.pages: list[PageView | None] = [None] * min(self.count, max_pages)
        self.page(1)

    def page(self, number: int) -> PageView:
        """A page, from 1.

        Raises:
            DataError: there is no such page, or it cannot be drawn.
        """
        if not 1 <= number <= len(self.pages):
            raise DataError(f"{self.name} has no page {number}")
        with _PDFIUM:
            view = self.pages[number - 1]
            if view is None:
                with self._opened() as document:
                    view = PageView(document.render(number - 1, DPI, MAX_PIXELS))
                self.pages[number - 1] = view
        return view

    @property
    def pixels(self) -> int:
        """Of the pages drawn so far."""
        return sum(view.image.width * view.image.height for view in self.pages if view)

    def _opened(self) -> AbstractContextManager[Any]:
        return open_document(Path(self.name), data=self._data)


class Shelf:
    """Documents by a name that cannot be guessed."""

    def __init__(self) -> None:
        self._documents: OrderedDict[str, OpenDocument] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, document: OpenDocument) -> str:
        """Keep a document; returns its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._documents[key] = document
            self._make_room()
        return key

    def get(self, key: str) -> OpenDocument:
        """The document, now the last to be put away.

        Raises:
            DataError: it was put away.
        """
        with self._lock:
            if key not in self._documents:
                raise DataError("this document was put away: open it again")
            self._documents.move_to_end(key)
            self._make_room()
            return self._documents[key]

    def remove(self, key: str) -> None:
        """Put a document away, if it is there."""
        with self._lock:
            self._documents.pop(key, None)

    def _make_room(self) -> None:
        held = sum(document.pixels for document in self._documents.values())
        while len(self._documents) > 1 and (
            held > MAX_HELD or len(self._documents) > MAX_DOCUMENTS
        ):
            _, gone = self._documents.popitem(last=False)
            held -= gone.pixels
