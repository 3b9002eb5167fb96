"""Visual caption restoration: read text that is partly covered (Zhang et al., 2024, VCR-Wiki).

How pages are made of plain text is in :mod:`alignvlm.data.synthetic.covered`; the setting, easy or
hard, is the split.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.synthetic.corpus import passages_from
from ...data.synthetic.covered import (
    STRIPS,
    VCR_PROMPT,
    Covered,
    VCRStyle,
    cover,
    draw_page,
    seeded,
)
from ...errors import DataError, nearest
from .task import Sample, Task, digest_files, metrics_named


class VCRTask(Task):
    """Pages with covered text from a plain text file.

    A sample is a page, as in the paper: the reply restores all its covered texts, ``answers`` are
    these in reading order, and the scores are means over covered texts.
    """

    name = "vcr"
    max_new_tokens = 120  # as lmms-eval's vcr_wiki

    def __init__(self, corpus: Path, split: str, style: VCRStyle) -> None:
        self.split, self.corpus = split, corpus
        self.style = style.checked(split)
        self.metrics = metrics_named("vcr_exact_match", "vcr_jaccard")
        self._pages = self._choose(passages_from(corpus))
        if not self._pages:
            raise DataError(
                f"{corpus}: no paragraph with {self.style.words} plain words in a row to cover"
            )

    def _choose(self, passages: tuple[str, ...]) -> list[Covered]:
        pages: list[Covered] = []
        order = seeded(self.style.seed, "pages").permutation(len(passages))
        for number in order.tolist():
            if len(pages) == self.style.pages:
                break
            name = f"{self.corpus.stem}/{number}"
            page = cover(passages[number], name, self.style, str(number))
            if page is not None:
                pages.append(page)
        return pages

    def __len__(self) -> int:
        return len(self._pages)

    def page(self, index: int) -> Covered:
        """Return the text of page ``index`` and what is covered."""
        if not 0 <= index < len(self):
            raise IndexError(f"vcr: index {index} is outside 0-{len(self) - 1}")
        return self._pages[index]

    def sample(self, index: int) -> Sample:
        page = self.page(index)
        return Sample(page.id, page.id, VCR_PROMPT, VCR_PROMPT, page.answers)

    def pages(self, index: int) -> list[Image.Image]:
        return [draw_page(self.page(index), self.style, STRIPS[self.split])]

    def settings(self) -> dict[str, Any]:
        style = asdict(self.style)
        style["font"] = Path(str(style["font"])).name
        return {
            "data": str(self.corpus),
            "labels_sha256": digest_files([self.corpus]),
            "prompt": VCR_PROMPT,
            "pages": {**style, "strip_px": STRIPS[self.split]},
        }


@dataclass(frozen=True)
class VCRSpec:
    """How to open the task; the split is the setting."""

    split: str = "easy"
    splits: tuple[str, ...] = tuple(STRIPS)

    def open(self, name: str, data: str | Path | None, split: str, **options: Any) -> Task:
        """Open a text file as pages.

        Raises:
            DataError: no text file, an unknown setting or option, or no text to cover.
        """
        if split not in STRIPS:
            known = ", ".join(STRIPS)
            raise DataError(f"{name}: no split {split!r}{nearest(split, STRIPS)}; use {known}")
        if data is None:
            raise DataError(f"{name}: needs --data: a plain text file to make pages of")
        if not Path(data).is_file():
            raise DataError(f"{name}: no such text file: {data}")
        for option in options:
            known = list(VCRStyle.__dataclass_fields__)
            if option not in known:
                raise DataError(f"{name}: no option {option!r}{nearest(option, known)}")
        return VCRTask(Path(data), split, VCRStyle(**options))


VCR = VCRSpec()
"""The task ``vcr``."""
