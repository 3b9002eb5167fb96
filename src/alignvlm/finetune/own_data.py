"""A user's folder as training and validation sources.

What is held out shares no document with what is trained on: all pages of a PDF are on one side, and
so are all questions about the same images.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.harvest.from_pdf import from_pdf
from ..data.questions_together import Together, can_join
from ..data.records import Record
from ..data.sources import JsonlSource, MixedSource, Source, Subset, limit
from ..errors import DataError
from .field_table import FieldTable
from .settings import Settings


@dataclass
class Split:
    """One kind of records, cut in two.

    Attributes:
        train, held_out: disjoint; neither is empty.
        documents: how many (PDFs, or sets of images) there are on both sides.
        by: ``"document"``, or ``"record"`` where too few documents would remain.
        samples: ``train`` as it is trained on: questions about the same pages are one sample.
        held_pages: of each held-out record what is equal where the pages are; ``None``: alone.
    """

    train: Source
    held_out: Source
    documents: int
    by: str
    samples: Source
    held_pages: Sequence[Hashable | None]

    def held_together(self, most: int | None = None) -> Together:
        """The held-out records, or ``most`` of them, with questions about the same pages in one."""
        shown = limit(self.held_out, most)
        return Together(shown, self.held_pages[: len(shown)])

    def to_dict(self) -> dict[str, Any]:
        """Counts, for the report."""
        return {
            "train": len(self.train),
            "held_out": len(self.held_out),
            "documents": self.documents,
            "split_by": self.by,
        }


@dataclass
class Data:
    """What a run trains on and is measured on.

    Attributes:
        pages: of the PDFs, with words; ``None`` without PDFs.
        questions: of the JSONL; ``None`` without one.
        harvest: what reading the PDFs gave and skipped, as ``Harvest.to_dict``.
        notes: what a person should know of it, a line each.
    """

    pages: Split | None = None
    questions: Split | None = None
    harvest: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take_apart(self) -> None:
        """Make every question a sample of its own, for a language model that must."""
        for split in self.splits:
            split.samples, split.held_pages = split.train, [None] * len(split.held_out)

    @property
    def splits(self) -> list[Split]:
        """Those there are."""
        return [split for split in (self.pages, self.questions) if split is not None]

    @property
    def train_size(self) -> int:
        """Samples to train on."""
        return sum(len(split.samples) for split in self.splits)

    def to_dict(self) -> dict[str, Any]:
        """Counts, and what was skipped, for the report."""
        return {
            "pages": None if self.pages is None else self.pages.to_dict(),
            "questions": None if self.questions is None else self.questions.to_dict(),
            "harvest": self.harvest,
        }

    def training(self, steps: int, batch: int, seed: int) -> Source:
        """Enough samples for the steps; each comes once before any comes again."""
        return MixedSource([s.samples for s in self.splits], None, steps * batch, seed=seed)

    def validation(self, most: int, seed: int) -> Source:
        """At most so many held-out samples of all kinds, in proportion, always the same."""
        held_out = [split.held_together() for split in self.splits]
        size = min(most, sum(len(source) for source in held_out))
        return MixedSource(held_out, None, max(size, len(held_out)), seed=seed)

    @cached_property
    def has_words(self) -> bool:
        """Whether any held-out record says where its words are."""
        return any(
            split.held_out[index].words is not None
            for split in self.splits
            for index in range(len(split.held_out))
        )


def load_data(settings: Settings, folder: Path, *, progress: bool = False) -> Data:
    """Read the PDFs and the questions, and hold out a share of each.

    Args:
        folder: gets the pages of the PDFs; a rerun goes on there.
        progress: show a bar on stderr.

    Raises:
        DataError: a row of the questions is wrong, no page can be used, or one record is alone.
    """
    data = Data()
    if settings.pdfs is not None:
        found = from_pdf(settings.pdfs, folder, dpi=settings.dpi, progress=progress)
        data.harvest = found.to_dict()
        pages = JsonlSource(found.records, name="pages")
        # every record is read once, so that a bad row is found before training starts
        documents = [document_of_page(pages[index]) for index in range(len(pages))]
        data.pages = _split(pages, documents, [None] * len(pages), settings)
    if settings.data is not None and settings.is_table:
        images = None if settings.images is None else Path(settings.images)
        table = FieldTable(Path(settings.data), images=images, dpi=settings.dpi)
        data.questions = _split(table, table.documents(), table.pages(), settings)
        if left_out := table.said_left_out():
            data.notes.append(f"{len(table)} values of {settings.data}{left_out}")
    elif settings.data is not None:
        questions = JsonlSource(settings.data, name="questions")
        records = [questions[index] for index in range(len(questions))]
        documents = [document_of_question(record) for record in records]
        pages = [tuple(record.images) if can_join(record) else None for record in records]
        data.questions = _split(questions, documents, pages, settings)
    return data


def document_of_page(record: Record) -> str:
    """The PDF that a harvested page is from."""
    return record.id.rsplit("#", 1)[0]


def document_of_question(record: Record) -> str:
    """The images asked about, or of a table's row its file; a question without any stands for
    itself."""
    if any(not isinstance(image, str) for image in record.images):
        return record.id.rpartition("#")[0] or record.id  # as FieldTable names its records
    return "\n".join(map(str, record.images)) or record.id


def _split(
    source: Source, keys: Sequence[str], pages: Sequence[Hashable | None], settings: Settings
) -> Split:
    """Cut a source in two by the documents' ``keys``; records of equal ``pages`` train together."""
    if len(keys) < 2:
        raise DataError(
            f"{source.name}: there is only one record, and a part must be held out to measure on; "
            "add more"
        )
    held_out, by = choose_held_out(keys, settings.validation, settings.seed)
    chosen = set(held_out)
    rest = [index for index in range(len(keys)) if index not in chosen]
    train, held = (Subset(source, part, name=source.name) for part in (rest, held_out))
    samples = Together(train, [pages[index] for index in rest])
    return Split(train, held, len(set(keys)), by, samples, [pages[index] for index in held_out])


def choose_held_out(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], str]:
    """Indices of about ``share`` of the records, whole groups of equal keys at a time.

    Groups are drawn by the seed as long as they fit. Where none does, the smallest is taken; where
    that is more than half of everything (one document, say), records are drawn instead.

    Returns:
        The indices in order, and what was drawn: ``"document"`` or ``"record"``.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    wanted = max(1, math.floor(share * len(keys) + 0.5))
    rng = np.random.default_rng(seed)
    drawn = [list(groups.values())[i] for i in rng.permutation(len(groups))]
    chosen: list[int] = []
    for group in drawn:
        if len(chosen) + len(group) <= wanted:
            chosen += group
    if chosen:
        return sorted(chosen), "document"
    smallest = min(drawn, key=len)
    if 2 * len(smallest) <= len(keys):
        return sorted(smallest), "document"
    return sorted(rng.permutation(len(keys))[:wanted].tolist()), "record"
