"""Documents that were read as files: text, Markdown, JSON or hOCR, one or many in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .hocr import HEAD, TAIL, hocr_pages
from .markdown import as_markdown, escaped
from .page_text import WordPage, as_data, as_text


class ReadDocument(NamedTuple):
    """A document's pages.

    Attributes:
        number: of the document in the file that is written, from 1.
        alone: whether that holds no other.
    """

    file: str
    pages: Sequence[WordPage]
    number: int = 1
    alone: bool = True


class PageFormat(NamedTuple):
    """How documents are written.

    Attributes:
        suffix: of a file's name.
        document: a document as text that ends with a line feed.
        head, between, tail: what stands before, between and after the documents of a file.
    """

    suffix: str
    document: Callable[[ReadDocument], str]
    head: str = ""
    between: str = ""
    tail: str = ""

    def whole(self, document: ReadDocument) -> str:
        """A file of one document."""
        return self.head + self.document(document) + self.tail


def _markdown(document: ReadDocument) -> str:
    if document.alone:
        return as_markdown(document.pages)
    return f"# {escaped(document.file)}\n\n{as_markdown(document.pages, 1)}"


def _json(document: ReadDocument) -> str:
    data = as_data(document.file, document.pages)
    return json.dumps(data, ensure_ascii=False) + "\n"


PAGE_FORMATS = {
    "text": PageFormat(".txt", lambda one: as_text(one.pages), between="\f\n"),
    "markdown": PageFormat(".md", _markdown, between="\n"),
    "json": PageFormat(".json", _json),
    "hocr": PageFormat(
        ".hocr", lambda one: hocr_pages(one.file, one.pages, one.number), head=HEAD, tail=TAIL
    ),
}
SUFFIXES = {".txt": "text", ".md": "markdown", ".json": "json", ".jsonl": "json", ".hocr": "hocr"}
"""What a file's name says of its format; JSON has a line a document."""
