"""Rendered pages, whose words are known, as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import DataError, nearest
from ..records import Record, make_record, transcript
from .source import check_index

if TYPE_CHECKING:
    from ..synthetic.render import RenderedPage, RenderSpec

TRANSCRIBE_QUESTION = "Read the text on the page."


def draw(*key: int) -> int:
    """Hash integers to a 64-bit integer that is the same everywhere (a seeded random draw)."""
    return int(np.random.SeedSequence([k % 2**64 for k in key]).generate_state(1, np.uint64)[0])


class RenderSource:
    """Pages drawn on demand with known words: record ``i`` is ``render_page`` of a seed from ``i``.

    The page's own seed is ``seed * 1_000_003 + i``. ``task="qa"`` asks for one fact of the page,
    ``"transcribe"`` for its whole text line by line, ``"both"`` tosses a fair coin per record.
    """

    def __init__(
        self,
        spec: RenderSpec,
        size: int,
        seed: int = 0,
        task: Literal["qa", "transcribe", "both"] = "qa",
    ) -> None:
        if task not in ("qa", "transcribe", "both"):
            hint = nearest(task, ("qa", "transcribe", "both"))
            raise DataError(f"render: task {task!r} is not qa, transcribe or both{hint}")
        if size < 1:
            raise DataError(f"render: size must be at least 1, not {size}")
        self.spec, self.size, self.seed, self.task = spec, size, seed, task
        self.name = f"render-{spec.layout}"

    def __len__(self) -> int:
        return self.size

    def page(self, index: int) -> RenderedPage:
        """Draw the page of record ``index``."""
        from ..synthetic.render import render_page

        return render_page(self.spec, self.seed * 1_000_003 + check_index(index, self.size, "page"))

    def __getitem__(self, index: int) -> Record:
        """Draw the page and write its question and answer."""
        index = check_index(index, self.size, self.name)
        page, random = self.page(index), draw(self.seed, index)
        task = ("qa", "transcribe")[random % 2] if self.task == "both" else self.task
        if task == "qa":
            if not page.facts:
                raise DataError(f"{self.name}: layout {page.layout!r} has no facts to ask for")
            fact = page.facts[random // 2 % len(page.facts)]
            turn = (fact.question, fact.answer)
        else:
            turn = (TRANSCRIBE_QUESTION, transcript(page.words))
        record_id = f"{self.name}/{self.seed}/{index}"
        return make_record(record_id, [page.image], [turn], source=self.name, words=[page.words])
