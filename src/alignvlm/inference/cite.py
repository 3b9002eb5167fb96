"""Where an answer's words stand: answer words found again in what the visual tokens say.

P_vocab says which token starts under each visual token. The tokens of one row of visual tokens,
blank ones left out, are the text of that row. Each word of the answer is looked up in these texts:
as it is, with a few wrong letters, or spelled by tokens that were not the most probable ones. A
word with a digit, a sign or a currency is looked up as it is alone. Among several places the one
next to the answer's neighbouring words is taken.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rapidfuzz.distance import Indel

from ..documents.page_images import PageImage
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from ..reader.page import Box
from .inspect import CellReading, PageReading, read_page
from .span import Span, union

MIN_SCORE = 0.75
"""Below this a place does not count as the word's."""
SHORT = 4
"""Words with fewer characters must be whole words on the page; letters alone, also next to another
cited word."""
NEXT, SAME_PAGE = 0.2, 0.05
"""What a place gains by following the word before it, or by being on the same page."""
PLACES, CLOSE = 32, 0.1
"""Places a word may have: so many, and none that scores so much less than its best one."""
PUNCTUATION = " \t\n.,;:!?\"'`()[]{}<>*|“”‘’«»"


@dataclass(frozen=True)
class ReadPage:
    """A page as P_vocab reads it.

    Attributes:
        file, page, scale: as in :class:`~alignvlm.documents.page_images.PageImage`.
        width, height: of the page image, px.
        reading: what each visual token says.
    """

    file: str
    page: int
    width: int
    height: int
    reading: PageReading
    scale: float | None = None


@dataclass(frozen=True)
class Citation:
    """A word of the answer and the visual tokens it comes from.

    Attributes:
        file, page: where; the first page is 1.
        word: of the answer.
        index: number of the word in the answer, 0 for the first one.
        reads: what the visual tokens say.
        box: x0, y0, x1, y1 of the visual tokens in which the word's tokens start, in px of the page
            image, y down. A token's later letters may lie right of it.
        points: the same in PDF points (1/72 inch) from the page's top left; None for a picture.
        score: 1 where the most probable tokens spell the word, at least ``MIN_SCORE``; of an
            extractive answer see :func:`cite_span`.
    """

    file: str
    page: int
    word: str
    index: int
    reads: str
    box: Box
    points: Box | None
    score: float


def read_pages(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Iterable[PageImage],
    k: int = 3,
    encoded: Encoded | None = None,
) -> list[ReadPage]:
    """What P_vocab says on some pages, as :func:`cite` takes it.

    Args:
        k: how many tokens of each visual token may spell a word.
        encoded: the pages as :func:`alignvlm.inference.prompt.encode_pages` gave them, if they were
            encoded before.

    Raises:
        ConfigError: the connector is not ALIGN, so there is no P_vocab.
    """
    return [
        ReadPage(
            file=page.file,
            page=page.page,
            width=page.image.width,
            height=page.image.height,
            reading=read_page(
                model, processor, page.image, k, None if encoded is None else encoded.image(number)
            ),
            scale=page.scale,
        )
        for number, page in enumerate(pages)
    ]


def cite(answer: str, readings: list[ReadPage]) -> list[Citation]:
    """Find the words of an answer on its pages.

    A word with a digit, a sign or a currency is cited by the same word only: case and the
    punctuation around it may differ.

    Returns:
        At most one citation for each word, in the answer's order; words that are on no page, and
        short words that stand alone there, have none.
    """
    rows = [row for number, page in enumerate(readings) for row in _rows(number, page.reading)]
    words = list(enumerate(answer.split()))
    found = [(index, word, _places(_plain(word), rows)) for index, word in words]
    found = [(index, word, places) for index, word, places in found if places]
    chosen = _likeliest([(index, places) for index, _, places in found])
    spread = list(zip(found, chosen, strict=True))
    long = any(len(_plain(word)) >= SHORT or not _plain(word).isalpha() for _, word in words)
    citations = []
    for number, ((index, word, _), place) in enumerate(spread):
        near = [
            other
            for (i, _, _), other in spread[max(number - 1, 0) : number + 2]
            if abs(i - index) == 1 and (other.follows(place) or place.follows(other))
        ]
        alone = long and len(_plain(word)) < SHORT and _plain(word).isalpha() and not near
        if not alone:
            citations.append(_citation(index, word, place, readings[place.page]))
    return citations


def cite_span(span: Span, pages: Sequence[PageImage]) -> list[Citation]:
    """The words of an extractive answer, each where it was read.

    Args:
        span: of these pages, as :meth:`PageSpans.find` gives it.

    Returns:
        A citation a word; its score is the probability that the whole span was read right.
    """
    found = []
    for index, (word, number, box, reads) in enumerate(span.words):
        page = pages[number]
        points = _points(box, page.scale)
        sure = math.exp(span.log_probability)
        found.append(Citation(page.file, page.page, word, index, reads, box, points, sure))
    return found


def uncited(answer: str, citations: list[Citation]) -> list[str]:
    """Words with a digit, a sign or a currency that stand on no page, in the answer's order."""
    found = {citation.index for citation in citations}
    return [w for i, w in enumerate(answer.split()) if i not in found and _exact(_plain(w))]


def cited_pages(citations: list[Citation]) -> list[tuple[str, int]]:
    """File and page of the citations, that with the highest sum of scores first."""
    total: dict[tuple[str, int], float] = {}
    for citation in citations:
        where = (citation.file, citation.page)
        total[where] = total.get(where, 0.0) + citation.score
    return sorted(total, key=lambda where: -total[where])


@dataclass(frozen=True)
class _Row:
    """The visual tokens of one row that are not blank."""

    page: int
    number: int
    cells: list[CellReading]
    texts: list[str]  # the most probable tokens, a space before each that starts a column
    options: list[list[tuple[str, float]]]  # plain text and probability relative to the best


@dataclass(frozen=True)
class _Place:
    page: int
    row: int
    first: int
    last: int
    score: float
    cells: list[CellReading]

    def follows(self, other: _Place) -> bool:
        same = (self.page, self.row) == (other.page, other.row)
        return same and self.first == other.last + 1


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    return text.strip(PUNCTUATION).casefold()


def _exact(word: str) -> bool:
    """Whether another spelling would be another value."""
    return word[:1] in ("+", "-", "±") or any(
        char.isdigit() or char == "%" or unicodedata.category(char) == "Sc" for char in word
    )


def _rows(page: int, reading: PageReading) -> Iterator[_Row]:
    blank = reading.blank_id
    for number, line in enumerate(reading.lines()):
        cells, spaced, space = [], [], False
        for cell in line:
            if cell.tokens[0][0].strip():
                cells.append(cell)
                spaced.append(space)
            space = not cell.tokens[0][0].strip()
        options = [
            [
                (unicodedata.normalize("NFKC", text).strip().casefold(), p / cell.tokens[0][2])
                for text, index, p in cell.tokens
                if index != blank and text.strip()
            ]
            for cell in cells
        ]
        texts = ["".join(cell.tokens[0][0] for cell in cells[:1])]
        for before, cell, apart in zip(cells, cells[1:], spaced[1:]):
            text = cell.tokens[0][0]
            texts.append(f" {text}" if apart or _far(before, cell) else text)
        if cells:
            yield _Row(page, number, cells, texts, options)


def _far(before: CellReading, cell: CellReading) -> bool:
    """Whether more cells lie between two tokens than the first one's letters can take up."""
    return cell.col - before.col > max(2, len(before.tokens[0][0].strip()) + 1)


def _places(word: str, rows: list[_Row]) -> list[_Place]:
    if not word:
        return []
    known: dict[str, float] = {}
    exact = _exact(word)
    places = []
    for row in rows:
        for first in range(len(row.cells)):
            if not _plain(row.texts[first]):
                continue  # a word does not start with what is no part of words
            found = _same(word, row, first) if exact else _windows(word, row, first, known)
            best = max(found, key=lambda m: m[1], default=(0, 0.0))
            if best[1] >= MIN_SCORE:
                cells = row.cells[first : best[0] + 1]
                places.append(_Place(row.page, row.number, first, best[0], best[1], cells))
    places.sort(key=lambda place: -place.score)
    return [place for place in places[:PLACES] if place.score > places[0].score - CLOSE]


def _same(word: str, row: _Row, first: int) -> Iterator[tuple[int, float]]:
    """Last token and score of the text that is the word, nothing but punctuation around it."""
    text = ""
    for last in range(first, len(row.cells)):
        text += row.texts[last]
        plain = _plain(text)
        if plain == word:
            before, after = "".join(row.texts[:first]), "".join(row.texts[last + 1 :])
            if _apart(before, text, after):
                yield last, 1.0
        if len(plain) > len(word):
            return


def _apart(before: str, text: str, after: str) -> bool:
    """Whether what stands around a word is no part of it, such as a sign or another digit."""
    body = text.strip(PUNCTUATION)
    left = before + text[: text.index(body)]
    right = text[text.index(body) + len(body) :] + after
    if left[-1:] not in PUNCTUATION or right[:1] not in PUNCTUATION:
        return False
    return not (left[-2:-1].isdigit() and not left[-1].isspace()) and not (
        right[1:2].isdigit() and not right[0].isspace()
    )


def _windows(
    word: str, row: _Row, first: int, known: dict[str, float]
) -> Iterator[tuple[int, float]]:
    """Last token and score of the texts that start with one token and resemble the word."""
    whole = len(word) < SHORT
    if whole and not _starts_word(row, first):
        return
    text = ""
    spelled = {0: 0.0}  # letters of the word spelled so far -> sum of relative probabilities
    for last in range(first, len(row.cells)):
        if last > first and row.texts[last][0].isspace():
            spelled = {}  # another word starts
        text += row.texts[last]
        plain = _plain(text)
        complete = not whole or last + 1 == len(row.cells) or _starts_word(row, last + 1)
        step: dict[int, float] = {}
        for done, total in spelled.items():
            for option, weight in row.options[last]:
                end = done + len(option)
                if word.startswith(option, done):
                    step[end] = max(step.get(end, 0.0), total + weight)
        spelled = step
        if complete:
            if len(word) in spelled:
                yield last, spelled[len(word)] / (last - first + 1)
            if plain not in known:
                known[plain] = Indel.normalized_similarity(plain, word, score_cutoff=MIN_SCORE)
            yield last, known[plain] if not whole or plain == word else 0.0
        if len(plain) > 1.5 * len(word) + 1:
            return


def _starts_word(row: _Row, index: int) -> bool:
    if index == 0:
        return True
    return not (row.texts[index][0].isalnum() and row.texts[index - 1][-1].isalnum())


def _likeliest(words: list[tuple[int, list[_Place]]]) -> list[_Place]:
    """One place for each word: the sum of scores and of what neighbours gain is highest."""
    if not words:
        return []
    paths: list[tuple[float, list[_Place]]] = [(p.score, [p]) for p in words[0][1]]
    for (before, _), (index, places) in pairwise(words):
        paths = [
            max(
                (
                    (total + place.score + _gain(path[-1], place, index - before == 1),
                     [*path, place])
                    for total, path in paths
                ),
                key=lambda path: path[0],
            )
            for place in places
        ]  # fmt: skip
    return max(paths, key=lambda path: path[0])[1]


def _gain(before: _Place, place: _Place, adjacent: bool) -> float:
    if adjacent and place.follows(before):
        return NEXT
    return SAME_PAGE if place.page == before.page else 0.0


def _points(box: Box, scale: float | None) -> Box | None:
    x0, y0, x1, y1 = box
    return None if scale is None else (x0 / scale, y0 / scale, x1 / scale, y1 / scale)


def _citation(index: int, word: str, place: _Place, page: ReadPage) -> Citation:
    x0, y0, x1, y1 = union([cell.box for cell in place.cells])
    # cells at the border reach into the padding
    box = (x0, y0, min(x1, float(page.width)), min(y1, float(page.height)))
    return Citation(
        file=page.file,
        page=page.page,
        word=word,
        index=index,
        reads="".join(cell.tokens[0][0] for cell in place.cells).strip(),
        box=box,
        points=_points(box, page.scale),
        score=place.score,
    )
