"""What the other characters that a line may have say of its tokens.

A hypothesis is the line with one character exchanged, or with the two least sure ones of a word. It
weighs the product of their ratios, and counts at those places alone that its characters have a say
in: elsewhere it would multiply every candidate alike.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, product
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .characters import Characters
from .cut import Tokens, rank

HYPOTHESES = 256
"""Other spellings of a line that are looked at, the most probable ones."""
MARGIN = 1e-6
"""By which the most probable spelling's token at least exceeds every other candidate."""


class Change(NamedTuple):
    """One character exchanged: where in its line, for which, where its ratio is, log-weight."""

    place: int
    char: str
    ratio: int
    weight: float


class Window(NamedTuple):
    """The part of a line that a change can respell.

    Attributes:
        line: which line's.
        begin, stop: its characters, whole words.
        speaks: the first character whose token counts; words before it are context.
    """

    line: int
    begin: int
    speaks: int
    stop: int


class Other(NamedTuple):
    """A hypothesis: another text of a line, with one or two characters exchanged.

    Its weight is logarithmic, relative to the most probable characters.
    """

    window: Window
    weight: float
    changes: tuple[Change, ...]

    def text(self, line: str, window: Window | None = None) -> str:
        """What stands in the window."""
        window = window or self.window
        pieces, start = [], window.begin
        for place, char, *_ in self.changes:
            pieces += [line[start:place], char]
            start = place + 1
        return "".join([*pieces, line[start : window.stop]])


class Votes(NamedTuple):
    """Which hypothesis puts which token where; each ``[votes]``."""

    place: NDArray[np.int64]
    id: NDArray[np.int64]
    other: NDArray[np.int64]


def hypotheses(lines: Sequence[Characters], ratios: Tensor, least: float) -> list[Other]:
    """Single exchanges, and pairs of the two least sure characters of a word."""
    floor = math.log(least) if least > 0 else -math.inf
    values = ratios.detach().cpu().numpy()
    hopeful = (values >= floor) & np.isfinite(values)
    result, start = [], 0
    for number, line in enumerate(lines):
        width = line.log_ratio.shape[1]
        changes: dict[int, list[Change]] = {}
        for index in np.flatnonzero(hopeful[start : start + len(line.text) * width]).tolist():
            place, option = divmod(index, width)
            if option < len(line.options[place]):
                char, value = line.options[place][option], float(values[start + index])
                if char != line.text[place]:
                    change = Change(place, char, start + index, value)
                    changes.setdefault(place, []).append(change)
        start += len(line.text) * width
        words = [match.span() for match in re.finditer("[^ ]+", line.text)]
        unsure = {place: _word_of(words, place) for place in changes}
        windows = {
            place: _window(number, line.text, words, word, place) for place, word in unsure.items()
        }
        found = [(change.weight, (change,)) for options in changes.values() for change in options]
        for first, second in _pairs(unsure, changes):
            for pair in product(changes[first], changes[second]):
                weight = pair[0].weight + pair[1].weight
                if weight >= floor:
                    found.append((weight, pair))
        found.sort(key=itemgetter(0), reverse=True)
        for weight, some in found[:HYPOTHESES]:
            result.append(Other(windows[some[0].place], weight, some))
    return result


def _word_of(words: Sequence[tuple[int, int]], place: int) -> int:
    """Which word a character is in; a space belongs to the word after it."""
    return bisect_right(words, place, key=itemgetter(1))


def _pairs(unsure: dict[int, int], changes: dict[int, list[Change]]) -> Iterator[tuple[int, int]]:
    """The two least sure places of each word; ``unsure`` says in which word a place is."""
    for _, group in groupby(sorted(unsure), key=unsure.__getitem__):
        places = list(group)
        if len(places) > 1:
            places.sort(key=lambda place: -max(change.weight for change in changes[place]))
            yield min(places[:2]), max(places[:2])


def _window(
    number: int, text: str, words: Sequence[tuple[int, int]], word: int, place: int
) -> Window:
    """The word and its neighbours; both that a space parts, and their neighbours."""
    context = word - 1 - (text[place] == " ")
    begin, speaks = words[context] if context >= 0 else (0, 0)
    return Window(number, begin, speaks, words[word + 1][1] if word + 2 < len(words) else len(text))


def disagreeing(base: Tokens, seen: Tokens, parts: Sequence[Window]) -> set[Window]:
    """Parts that are cut otherwise when they are cut out of their lines.

    Args:
        base: tokens of the lines.
        seen: tokens of the parts, offsets into the lines too; ``line`` counts the parts.
    """
    if not parts:
        return set()
    line, _, speaks, stop = np.array(parts, np.int64).T
    seen = seen.of(seen.start >= speaks[seen.line])
    place = base.find(seen, line[seen.line])
    same = (place >= 0) & (base.id[place] == seen.id) & (base.end[place] == seen.end)
    count = np.bincount(seen.line, minlength=len(parts))
    right = np.bincount(seen.line, same, minlength=len(parts)) == count
    right &= count == base.before(line, stop) - base.before(line, speaks)
    return {part for part, agrees in zip(parts, right) if not agrees}


def votes_of(
    lines: Sequence[Characters], base: Tokens, tokens: Tokens, others: Sequence[Other]
) -> Votes:
    """What the hypotheses say of the places of the most probable spelling.

    A hypothesis speaks of the places where it starts a token too. It counts if its characters have
    a say in the place, all of them, or if it puts a token there that no single exchange does.
    """
    if not len(tokens.id) or not len(base.id):
        nothing = np.zeros(0, np.int64)
        return Votes(nothing, nothing, nothing)
    offset = np.array([0, *accumulate(len(line.text) for line in lines)], np.int64)
    other = tokens.line
    line = np.array([o.window.line for o in others], np.int64)
    changed = np.array([(o.changes[0].place, o.changes[-1].place) for o in others], np.int64)
    single = changed[:, 0] == changed[:, 1]
    changed = (changed + offset[line, None])[other]
    start = offset[base.line] + base.start
    end = start + base.end - base.start
    place = base.find(tokens, line[other])
    speaks = (place >= 0) & (base.whole()[place] == tokens.whole())
    other, place, token, changed = (x[speaks] for x in (other, place, tokens.id, changed))
    single = single[other]
    differs = token != base.id[place]
    alone = differs & single
    say = place * (offset[-1] + 1) + changed[:, :1].T
    say = np.concatenate([say, place * (offset[-1] + 1) + changed[:, 1:].T]).T
    within = (start[place, None] <= changed) & (changed < end[place, None])
    has_say = within | np.isin(say, np.unique(say[alone, 0]))
    candidate = place * (int(max(token.max(initial=0), base.id.max())) + 1) + token
    new = differs & ~np.isin(candidate, np.unique(candidate[alone]))
    counts = has_say.all(1) | new
    return Votes(place[counts], token[counts], other[counts])


def share(
    base: NDArray[np.int64],
    votes: Votes,
    others: Sequence[Other],
    ratios: Tensor,
    max_candidates: int,
) -> tuple[Tensor, Tensor]:
    """Candidates and their probabilities, ``[places, k]``."""
    count, device = len(base), ratios.device
    weight = np.exp(np.array([other.weight for other in others], np.float64))
    place = np.concatenate([np.arange(count), votes.place])
    token = np.concatenate([base, votes.id])
    mass = np.concatenate([np.ones(count), weight[votes.other]])
    size = int(token.max(initial=0)) + 1
    kinds, which = np.unique(place * size + token, return_inverse=True)
    total = np.bincount(which, mass, minlength=len(kinds))
    own, token = kinds // size, kinds % size
    order = np.lexsort((-total, token != base[own], own))
    column = np.empty(len(kinds), np.int64)
    column[order] = rank(own[order])
    width = max(min(int(column.max(initial=0)) + 1, max_candidates), 1)
    ids = np.full((count, width), -1, np.int64)
    fits = column < width
    ids[own[fits], column[fits]] = token[fits]
    q = torch.zeros(count * width, dtype=ratios.dtype, device=device)
    q[::width] = 1.0
    which = which[count:]
    chosen = fits[which]
    if chosen.any():
        index = [(other.changes[0].ratio, other.changes[-1].ratio) for other in others]
        index = np.array(index, np.int64)[votes.other[chosen]]
        first, second = torch.from_numpy(index).to(device).T
        log_weight = ratios[first] + torch.where(first == second, 0.0, ratios[second])
        target = votes.place[chosen] * width + column[which[chosen]]
        q = q.index_add(0, torch.from_numpy(target).to(device), log_weight.exp())
    q = q.view(count, width)
    return torch.from_numpy(ids).to(device), _first_largest(q / q.sum(1, keepdim=True))


def _first_largest(q: Float[Tensor, "places k"]) -> Float[Tensor, "places k"]:
    """As little as possible moved to the first of each row, so that it is the largest."""
    if q.shape[1] == 1 or not len(q):
        return q
    excess = (q[:, 1:].amax(1) - q[:, 0] + MARGIN).clamp_min(0)
    moved = (excess / (1 + excess))[:, None]
    first = torch.zeros_like(q)
    first[:, 0] = 1.0
    return q + moved * (first - q)
