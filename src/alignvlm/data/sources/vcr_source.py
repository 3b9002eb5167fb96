"""Visual caption restoration as training data: pages with covered text, from any plain text."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError, nearest
from ..records import Record, make_record
from ..synthetic.corpus import builtin_passages, passages_from
from ..synthetic.covered import STRIPS, VCR_PROMPT, VCRStyle, cover, draw_page
from .source import check_index


class VCRSource:
    """Pages with covered words, and what stood there, a line for each covered text.

    Page ``i`` is paragraph ``i mod n`` of those that have words to cover; each time round other
    words are covered. Records have no ``words``: P_vocab is not taught to read what is covered.

    Args:
        path: a plain text file; ``None``: the paragraphs that rendered pages are made of.
        setting: ``easy`` or ``hard``, how much of the letters stays visible.
        size: pages in the source.
        seed: chooses the covered words.

    Raises:
        DataError: no such file or setting, or no paragraph with words to cover.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        setting: str = "easy",
        size: int = 100_000,
        seed: int = 0,
    ) -> None:
        if setting not in STRIPS:
            known = ", ".join(STRIPS)
            raise DataError(f"vcr: no setting {setting!r}{nearest(setting, STRIPS)}; use {known}")
        if path is not None and not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        self.name, self.setting, self.size, self.seed = f"vcr-{setting}", setting, size, seed
        self.style = VCRStyle(seed=seed).checked(setting)
        passages = builtin_passages() if path is None else passages_from(Path(path))
        # whether words can be covered does not depend on which are drawn
        self._passages = [text for text in passages if cover(text, "", self.style, "0") is not None]
        if not self._passages:
            where = "vcr" if path is None else path
            raise DataError(
                f"{where}: no paragraph with {self.style.words} plain words in a row to cover"
            )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        """Draw the page and write its question and answer."""
        index = check_index(index, len(self), self.name)
        text = self._passages[index % len(self._passages)]
        name = f"{self.name}/{self.seed}/{index}"
        page = cover(text, name, self.style, str(index))
        assert page is not None
        image = draw_page(page, self.style, STRIPS[self.setting])
        turn = (VCR_PROMPT, "\n".join(page.answers))
        return make_record(name, [image], [turn], source=self.name)
