"""The token and the word that stand under each visual token of a page whose text is known."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..connectors.store import Pages
from .score import Truth


class Spans(NamedTuple):
    """A page's text with the token and the word at each character.

    Attributes:
        text: the rows, a space before each.
        token: number of the token that covers each character.
        ids: of the tokens.
        word: the word at each character; empty at spaces.
    """

    text: str
    token: list[int]
    ids: list[int]
    word: list[str]


def spans(rows: Sequence[str], tokenizer: Any) -> Spans:
    """Tokenize a page's rows as running text."""
    text, token, ids, word = "", list[int](), list[int](), list[str]()
    for row in rows:
        line = " " + " ".join(row.split())
        encoded = tokenizer(line, add_special_tokens=False, return_offsets_mapping=True)
        covers = [-1] * len(line)
        for i, (begin, end) in enumerate(encoded["offset_mapping"]):
            covers[begin:end] = [len(ids) + i] * (end - begin)
        ids += encoded["input_ids"]
        token += covers
        text += line
        for part in line[1:].split(" "):
            word += ["", *[part] * len(part)]
    return Spans(text, token, ids, word)


def aligned(pieces: Sequence[str], page: Spans) -> list[int | None]:
    """For each piece of a reading the character of the page's text where it stands.

    The reading is used to find places, never to name tokens: a piece that was read wrongly is
    placed where the wrong letters stand. ``None``: nothing of the page's text is there.
    """
    read, starts = "", list[int]()
    for piece in pieces:
        blank = len(piece) - len(piece.lstrip())
        # a token of nothing but space stands before its neighbour, on nothing
        starts.append(len(read) + blank if blank < len(piece) else -1)
        read += piece
    place: dict[int, int] = {}
    matcher = SequenceMatcher(None, page.text, read, autojunk=False)
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            place |= dict(zip(range(b0, b1), range(a0, a1)))
    return [place.get(start) for start in starts]


def truth_of_reading(
    pieces: Sequence[str], page: Spans, number: int
) -> tuple[Truth, NDArray[np.bool_]]:
    """What stands under the tokens of a reading, and for which of them it is known."""
    places = aligned(pieces, page)
    known = [p for p in places if p is not None and page.word[p] and page.token[p] >= 0]
    kept = np.array([p in set(known) for p in places], bool)
    own = [page.token[p] for p in known]
    after = [page.ids[t + 1] if t + 1 < len(page.ids) else -1 for t in own]
    truth = Truth(
        np.array([page.ids[t] for t in own], np.int64), np.array(after, np.int64),
        [page.word[p] for p in known], np.full(len(own), number),
    )  # fmt: skip
    return truth, kept


def truth_of_cells(
    pages: Pages, number: int, blank: int, tokenizer: Any
) -> tuple[Truth, NDArray[np.bool_]]:
    """What stands under the cells of a stored page; cells in which no token starts are left out.

    The word of a token is that of the page's text in which it comes, in reading order.
    """
    targets = pages.targets[pages.cells(number)].astype(np.int64)
    kept = targets != blank
    own = targets[kept]
    after = np.append(own[1:], -1) if len(own) else own
    page = spans(pages.meta[number]["text"].split("\n"), tokenizer)
    word, at = [], 0
    for token in own.tolist():
        if token in page.ids[at:]:  # a token that was not placed in a cell is passed over
            at = page.ids.index(token, at)
            word.append(_word(page, at))
            at += 1
        else:
            word.append(tokenizer.decode([token]).strip())
    return Truth(own, after, word, np.full(len(own), number)), kept


def _word(page: Spans, token: int) -> str:
    places = [i for i, t in enumerate(page.token) if t == token and page.word[i]]
    return page.word[places[0]] if places else ""


def joined(parts: Sequence[Truth]) -> Truth:
    """Several pages' as one."""
    return Truth(
        np.concatenate([part.token for part in parts]),
        np.concatenate([part.after for part in parts]),
        [word for part in parts for word in part.word],
        np.concatenate([part.page for part in parts]),
    )
