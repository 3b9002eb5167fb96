"""Answers that are spans of the page: no letter is made up, and the place comes with the words.

The text that a reader found is a line of characters, rows parted by one space, each with the other
characters it may be. An answer is spelled byte by byte along it, from where a word begins to where
one ends; a token may follow if all of its bytes do. So it does not matter where the page's own
spelling has its token boundaries, nor that an answer starts without the space a page's word has.

Small letters may be said as capitals, a space may be put where words were printed or read without
one, and a narrow space be left out (:mod:`.word_edges`): a model that learnt to say "NOVAK DELI"
for "Novak Deli" would otherwise go elsewhere at the first small letter. What is printed is kept.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..reader.page import PageTokens
from ..tiling import Grid
from .span import Span, SpanWord, union
from .token_bytes import TokenBytes
from .values import Likeness
from .word_edges import may_be_capitals, may_join, word_bounds, word_gaps

ABSENT = "not on this page"
"""The one answer that need not stand on the page."""
UNSURE = math.log(0.05)
"""Another character is allowed in a place if it is at least so probable, relative to the best."""
CHANGED = -1e-6
"""What a capital, a space more or a space less costs, nats: as printed goes first."""
_PUT, _LEFT_OUT = -1, -2
MOST_TESTED = 48
"""Characters of the longest span that may be of a kind; a date with weekday and time has 43."""


class LiveSpan(NamedTuple):
    """A span that is being spelled: where it began, the character it is at, and of that one's bytes
    those still to come; the log-ratio of what it took in place of what is printed, and what that is
    (place, and number of the option, ``_PUT`` or ``_LEFT_OUT``); whether a space was just put, and
    whether the letters are said in capitals."""

    start: int
    at: int
    rest: bytes
    weight: float
    took: tuple[tuple[int, int], ...]
    apart: bool = False
    large: bool = False

    @property
    def state(self) -> tuple[int, bytes, bool, bool]:
        """Where it is in the text."""
        return self.at, self.rest, self.apart, self.large


class _Option(NamedTuple):
    """A character that may be said in a place: log-ratio to the best one, as it is printed, and
    whether it is a capital in place of a small letter; ``None``: it has no other size."""

    said: str
    ratio: float
    printed: str
    large: bool | None = None

    def capital(self) -> list[_Option]:
        """It and the same as a capital, where that is another single character."""
        large = self.said.upper()
        if large == self.said or len(large) > 1:
            return [self]
        more = self._replace(said=large, ratio=self.ratio + CHANGED, large=True)
        return [self._replace(large=False), more]


SPACE = _Option(" ", 0.0, " ")


class PageSpans:
    """All spans of some pages.

    Args:
        pages: what was read on each, with px of its boxes for each px of the page image.
    """

    absent = ABSENT

    def __init__(self, pages: Sequence[tuple[PageTokens, float]]) -> None:
        self._pages = pages
        self._chars: list[list[_Option]] = []  # at each place what may stand, best first
        self._where: list[tuple[int, int, int] | None] = []  # page, row, character
        self._starts: list[int] = []
        self._ends: set[int] = set()  # places right behind a word
        self._gaps: set[int] = set()  # places before which a space may be said
        self._narrow: set[int] = set()  # spaces that may be left out
        self._deciding: set[int] = set()  # small letters that say for a run if it is in capitals
        self._only: dict[int, set[int]] | None = None  # of each start the ends, if not all
        for number, (page, _) in enumerate(pages):
            first = len(self._chars)
            for index, row in enumerate(page.rows):
                self._add_row(number, index, row.characters)
            self._bound(first)
        self._absent = len(self._chars)
        self._starts.append(self._absent)
        for char in self.absent:
            self._put([_Option(char, 0.0, char)], None)
        self._ends.add(len(self._chars))
        self._put([], None)

    def _add_row(self, page: int, row: int, characters: Any) -> None:
        ratios = characters.log_ratio.detach().tolist()
        capitals = [
            [word.start() + index for index in run]
            for word in re.finditer(r"\S+", characters.text)
            for run in may_be_capitals(word[0])
        ]
        small, deciding = {at for run in capitals for at in run}, {run[0] for run in capitals}
        for index, char in enumerate(characters.text):
            char = " " if char.isspace() else char
            others = [
                _Option(other, ratio, other)
                for other, ratio in zip(characters.options[index], ratios[index])
                if ratio >= UNSURE and not other.isspace() and other != char
            ]
            options = [_Option(char, 0.0, char), *others]
            if index in small:
                options = [both for one in options for both in one.capital()]
            if index in deciding:
                self._deciding.add(len(self._chars))
            self._put(options, (page, row, index))
        self._put([SPACE], None)

    def _put(self, options: list[_Option], where: tuple[int, int, int] | None) -> None:
        """Another place; of several spaces only the first one."""
        if not (options[:1] == [SPACE] and self._chars and self._chars[-1][:1] in ([SPACE], [])):
            self._chars.append(options)
            self._where.append(where)

    def _bound(self, first: int) -> None:
        """Where spans of the characters from ``first`` on may begin and end, and where a space is
        put or left out; none goes on."""
        text = "".join(options[0].said for options in self._chars[first:])
        place = first
        for word in text.split(" "):
            starts, ends = word_bounds(word)
            self._starts += [place + start for start in starts]
            self._ends |= {place + end for end in ends}
            self._gaps |= {place + gap for gap in word_gaps(word)}
            place += len(word) + 1
        for at in range(first + 1, len(self._chars) - 1):
            if text[at - first] == " " and may_join(text[at - first - 1], text[at - first + 1]):
                self._narrow |= {at} if self._beside(at - 1, at + 1) else set()
        if self._chars[first:]:
            self._chars[-1] = []

    def _beside(self, left: int, right: int) -> bool:
        """Whether two places are in one row, and no further apart than it is high."""
        a, b = self._where[left], self._where[right]
        if a is None or b is None or a[:2] != b[:2]:
            return False
        row = self._pages[a[0]][0].rows[a[1]]
        first, second = row.boxes[a[2]].tolist(), row.boxes[b[2]].tolist()
        x0, y0, x1, y1 = row.box
        across = max(second[0] - first[2], first[0] - second[2])
        down = max(second[1] - first[3], first[1] - second[3])
        return max(across, down) <= min(x1 - x0, y1 - y0)

    def only(self, likeness: Callable[[str], Likeness]) -> PageSpans:
        """Those spans whose words are of a kind, or may be, and "not on this page".

        If no span surely is, nothing is left out. Of words that only hold something of the kind
        (glued to others, or in a form that is not known) those stay that share no word with a span
        of it. Words are tried as they were read, and with another character in one unsure place.

        Args:
            likeness: how much words look like the kind.

        Returns:
            These spans themselves, if nothing is left out.
        """
        found = {
            (start, end): max(map(likeness, self._texts(start, end)))
            for start in self._starts
            if start != self._absent
            for end in self._reach(start)
        }
        if Likeness.IS not in found.values():
            return self
        whole = [span for span, like in found.items() if like >= Likeness.MAY_BE]
        only: dict[int, set[int]] = {self._absent: {self._absent + len(self.absent)}}
        for (start, end), like in found.items():
            holds = like == Likeness.HOLDS and not any(a < end and start < b for a, b in whole)
            if holds or like >= Likeness.MAY_BE:
                only.setdefault(start, set()).add(end)
        few = copy.copy(self)
        few._starts, few._only, few._gaps = list(only), only, set()
        return few

    def _reach(self, start: int) -> Iterator[int]:
        """Where a span from there may end, on the same page and not far off."""
        ends = self._ends if self._only is None else self._only[start]
        for end in range(start + 1, start + MOST_TESTED + 1):
            if not self._chars[end - 1]:
                return
            if end in ends:
                yield end

    def _texts(self, start: int, end: int) -> Iterator[str]:
        """What a span may say, spaces as they were read, and capitals."""
        own = [options[0].said for options in self._chars[start:end]]
        yield "".join(own)
        if not any(char.isdigit() for char in own):
            return
        for place, options in enumerate(self._chars[start:end]):
            for other in options[1:]:
                if other.said.lower() != own[place].lower():
                    yield "".join([*own[:place], other.said, *own[place + 1 :]])

    def begin(self, *, spaced: bool = False) -> list[LiveSpan]:
        """Every place where a span may begin; ``spaced``: also with a space before it."""
        live = [LiveSpan(start, start, b"", 0.0, (), apart=True) for start in self._starts]
        return live + [one._replace(at=-1 - one.start) for one in live if spaced]

    def _steps(self, live: LiveSpan) -> Iterator[tuple[int, LiveSpan]]:
        """The bytes that may come next, each with where it leads."""
        start, at, rest, weight, took, apart, _ = live
        if at < 0:  # the space before the span
            yield 0x20, live._replace(at=live.start)
        elif rest:
            yield rest[0], live._replace(at=at + (len(rest) == 1), rest=rest[1:])
        elif self._only is None or at < max(self._only[start]):
            if at in self._gaps and not apart:
                put = (*took, (at, _PUT))
                yield 0x20, live._replace(weight=weight + CHANGED, took=put, apart=True)
            yield from self._characters(live._replace(apart=False))
            if at in self._narrow:
                out = (*took, (at, _LEFT_OUT))
                left = live._replace(at=at + 1, weight=weight + CHANGED, took=out, apart=False)
                yield from self._characters(left)

    def _characters(self, live: LiveSpan) -> Iterator[tuple[int, LiveSpan]]:
        """The first bytes of the characters that may stand at its place."""
        start, at, _, weight, took, _, large = live
        for number, (char, ratio, _, own) in enumerate(self._chars[at]):
            if at in self._deciding:
                large = bool(own)
            elif own not in (None, large):
                continue
            spelled = char.encode()
            more = took if number == 0 else (*took, (at, number))
            after = at + (len(spelled) == 1)
            yield (
                spelled[0],
                LiveSpan(start, after, spelled[1:], weight + ratio, more, False, large),
            )

    def follow(self, live: Iterable[LiveSpan], spelled: bytes) -> list[LiveSpan]:
        """The spans that go on with these bytes."""
        for byte in spelled:
            best: dict[Any, LiveSpan] = {}
            for one in live:
                for step, after in self._steps(one):
                    key = after.start, after.state
                    if step == byte and (key not in best or best[key].weight < after.weight):
                        best[key] = after
            live = list(best.values())
        return list(live)

    def allowed(self, live: Iterable[LiveSpan], tokens: TokenBytes) -> set[int]:
        """Tokens all of whose bytes some span goes on with."""
        found: set[int] = set()
        todo = {(self._key(one), b""): one for one in live}
        while todo:
            (_, before), one = todo.popitem()
            for byte, after in self._steps(one):
                spelled = before + bytes([byte])
                found.update(tokens.ids.get(spelled, ()))
                if spelled in tokens.prefixes:
                    todo[self._key(after), spelled] = after
        return found

    def _key(self, live: LiveSpan) -> tuple[Any, ...]:
        """What decides how it may go on: not where it began, unless its ends depend on that."""
        return live.state if self._only is None else (live.start, live.state)

    def ended(self, live: Iterable[LiveSpan]) -> list[LiveSpan]:
        """Those spans that may end here."""
        whole = (one for one in live if not one.rest and not one.apart)
        only = self._only
        return [o for o in whole if o.at in (self._ends if only is None else only[o.start])]

    def find(self, text: str) -> Span | None:
        """The most probable span that the text begins with, the longest one, the first on the page;
        ``None`` if it does not begin with one. A text that was cut within a word loses that word.
        """
        live, best = self.begin(), None
        for char in text:
            live = self.follow(live, char.encode())
            if not live:
                break
            ends = self.ended(live)
            if ends:
                best = max(ends, key=lambda one: (one.weight, -one.start))
        return None if best is None else self._span(best)

    def _span(self, live: LiveSpan) -> Span:
        if live.start == self._absent:
            return Span("", [], 0.0)
        words, sure = zip(*map(self._word, self._said(live)))
        total = live.weight + math.fsum(sure)
        return Span(" ".join(word.text for word in words), list(words), min(total, 0.0))

    def _said(self, live: LiveSpan) -> list[list[tuple[int, _Option]]]:
        """The characters of each word, with their places."""
        took = {at: number for at, number in live.took if number >= 0}
        words: list[list[tuple[int, _Option]]] = [[]]
        for at in range(live.start, live.at):
            option = self._chars[at][took.get(at, 0)]
            if (at, _PUT) in live.took:
                words.append([])
            if option == SPACE and (at, _LEFT_OUT) not in live.took:
                words.append([])
            else:
                words[-1].append((at, option))
        return words

    def _word(self, chars: Sequence[tuple[int, _Option]]) -> tuple[SpanWord, float]:
        """A word with its place, and the log-probability that it was read right."""
        boxes, page, total = [], 0, 0.0
        for at, option in chars:
            place = self._where[at]
            if option == SPACE or place is None:
                continue
            page, number, index = place
            row, scale = self._pages[page][0].rows[number], self._pages[page][1]
            boxes.append([edge / scale for edge in row.boxes[index].tolist()])
            total += math.log(max(float(row.probability[index]), 1e-6))
        said = "".join(option.said for _, option in chars if option != SPACE)
        reads = "".join(option.printed for _, option in chars)
        return SpanWord(said, page, union(boxes), reads), total


def page_spans(
    model: AlignVLMForConditionalGeneration,
    sizes: Sequence[tuple[int, int]],
    encoded: Encoded,
) -> PageSpans:
    """The spans of some encoded pages.

    Args:
        sizes: width and height of each page image, px.
        encoded: what :func:`alignvlm.inference.ask.encode_pages` gave for them.

    Raises:
        ConfigError: the model's vision encoder reads no text.
    """
    if encoded.pages is None:
        raise ConfigError(
            "extractive answers need a model whose encoder reads the page, such as smol; this "
            "model's gives features alone"
        )
    found = []
    for number, size in enumerate(sizes):
        one = encoded.image(number)
        grid = Grid(*one.image_grids[0, :2].tolist())
        found.append(((one.pages or [])[0], model.config.page_scale(size, grid)))
    return PageSpans(found)
