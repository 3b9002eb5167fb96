"""Form fields and annotations of a PDF page: their words, put where a reader meets them.

The text layer holds what the page's own content draws. What a viewer draws on top of it (filled
form fields, notes, stamps) becomes content when the page is flattened, at the end of the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .words import Word

SAME_LINE = 0.5
"""Share of the taller one's height that two neighbours on one line have in common."""


def flatten(page: Any) -> bool:
    """Make form fields and annotations part of the page's content, in memory.

    Returns:
        Whether there were any; the page must then be opened anew, and its size may be another.
    """
    import pypdfium2.raw as raw

    if not raw.FPDFPage_GetAnnotCount(page):
        return False
    # drawing is what makes PDFium draft the looks that a file leaves to the viewer
    page.render(scale=1 / max(page.get_size())).close()
    return raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY) == raw.FLATTEN_SUCCESS


def words_with_fields(flattened: Sequence[Word], before: Sequence[Word]) -> list[Word]:
    """Words of a flattened page, those of fields and annotations moved to where they stand.

    Words beside a line of the page join it; others become lines of their own, above the first line
    that is further down.

    Args:
        flattened: words of the page with its fields and annotations.
        before: words of the page without them, whose order stays.
    """
    known = Counter(map(_mark, before))
    lines: dict[int, list[Word]] = {}
    added: list[Word] = []
    for word in flattened:
        if known[_mark(word)] > 0:
            known[_mark(word)] -= 1
            lines.setdefault(word.line, []).append(word)
        else:
            added.append(word)
    order = list(lines.values())
    for run in _runs(added):
        _place(run, order)
    return [replace(word, line=number) for number, line in enumerate(order) for word in line]


def _mark(word: Word) -> tuple[str, tuple[int, ...]]:
    return word.text, tuple(round(side) for side in word.box)


def _runs(words: Sequence[Word]) -> list[list[Word]]:
    """Words that follow one another on one line; PDFium may put several fields on one."""
    runs: list[list[Word]] = []
    for word in words:
        last = runs[-1][-1] if runs else None
        if last is not None and _level(last, word) and word.box[0] >= last.box[0]:
            runs[-1].append(word)
        else:
            runs.append([word])
    return runs


def _level(a: Word, b: Word) -> bool:
    """Whether two words stand on one line."""
    common = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    taller = max(a.box[3] - a.box[1], b.box[3] - b.box[1])
    return common > SAME_LINE * taller


def _place(run: list[Word], lines: list[list[Word]]) -> None:
    for line in lines:
        if any(_level(run[0], word) for word in line) and not any(
            _beside(word, other) for word in line for other in run
        ):
            line += run
            line.sort(key=lambda word: word.box[0])
            return
    middle = _middle(run)
    below = (index for index, line in enumerate(lines) if _middle(line) > middle)
    lines.insert(next(below, len(lines)), run)


def _beside(a: Word, b: Word) -> bool:
    """Whether two words share a part of the page's width."""
    return min(a.box[2], b.box[2]) > max(a.box[0], b.box[0])


def _middle(line: Sequence[Word]) -> float:
    return median((word.box[1] + word.box[3]) / 2 for word in line)
