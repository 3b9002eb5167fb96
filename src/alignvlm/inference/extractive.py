"""Answers that are spans of the page: no letter is made up, and the place comes with the words.

The text that a reader found is a line of characters, rows parted by one space, each with the other
characters it may be. An answer is spelled byte by byte along it, from where a word begins to where
one ends; a token may follow if all of its bytes do. So it does not matter where the page's own
spelling has its token boundaries, nor that an answer starts without the space a page's word has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from ..errors import ConfigError
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..reader.cut import BYTES
from ..reader.page import Box, PageTokens
from ..tiling import Grid
from .values import CURRENCY

ABSENT = "not on this page"
"""The one answer that need not stand on the page."""
UNSURE = math.log(0.05)
"""Another character is allowed in a place if it is at least so probable, relative to the best."""
_OPEN, _CLOSE = "([{<\"'“‘«*#", ")]}>\"'”’»*.,:;!?"
_PARTS = re.compile(r"[:;=|(\[]")


class SpanWord(NamedTuple):
    """A word of a span and where it stands: page from 0, box in px of the page image."""

    text: str
    page: int
    box: Box


@dataclass(frozen=True)
class Span:
    """Words that stand on the pages one after the other.

    Attributes:
        text: with single spaces; empty for :data:`ABSENT`.
        words: each with its place; none for :data:`ABSENT`.
        log_probability: that the page was read right here, nats.
    """

    text: str
    words: list[SpanWord]
    log_probability: float

    @property
    def boxes(self) -> list[tuple[int, Box]]:
        """Page and box of the span on each page and row that it runs over."""
        found: list[tuple[int, Box]] = []
        for _, page, (x0, y0, x1, y1) in self.words:
            if found and found[-1][0] == page and _beside(found[-1][1], (x0, y0, x1, y1)):
                a, b, c, d = found.pop()[1]
                x0, y0, x1, y1 = min(a, x0), min(b, y0), max(c, x1), max(d, y1)
            found.append((page, (x0, y0, x1, y1)))
        return found


def _beside(first: Box, second: Box) -> bool:
    middle = (second[1] + second[3]) / 2
    return first[1] <= middle <= first[3]


class TokenBytes:
    """What each token of a vocabulary spells, looked up by its bytes.

    Args:
        tokenizer: a fast tokenizer of transformers; special and added tokens spell nothing.
        size: ids from here on are left out: the model has no logits for them.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.byte_level = '"ByteLevel"' in tokenizer.backend_tokenizer.to_str()
        added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self.ids: dict[bytes, list[int]] = {}
        for name, token in tokenizer.get_vocab().items():
            if token < size and token not in added and (spelled := self._spelled(name)):
                self.ids.setdefault(spelled, []).append(token)
        self.of = {token: text for text, tokens in self.ids.items() for token in tokens}
        self.prefixes = {text[:end] for text in self.ids for end in range(1, len(text))}

    def _spelled(self, name: str) -> bytes:
        if self.byte_level:
            return bytes(BYTES[char] for char in name) if all(c in BYTES for c in name) else b""
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()


class _Live(NamedTuple):
    """A span that is being spelled: where it began, the character it is at, and of that one's bytes
    those still to come; the log-ratio of the other characters it took, and which these are."""

    start: int
    at: int
    rest: bytes
    weight: float
    took: tuple[tuple[int, int], ...]


class PageSpans:
    """All spans of some pages.

    Args:
        pages: what was read on each, with px of its boxes for each px of the page image.
    """

    absent = ABSENT

    def __init__(self, pages: Sequence[tuple[PageTokens, float]]) -> None:
        self._pages = pages
        self._chars: list[list[tuple[str, float]]] = []  # at each place what may stand, best first
        self._where: list[tuple[int, int, int] | None] = []  # page, row, character
        self._starts: list[int] = []
        self._ends: set[int] = set()  # places right behind a word
        for number, (page, _) in enumerate(pages):
            first = len(self._chars)
            for index, row in enumerate(page.rows):
                self._add_row(number, index, row.characters)
            self._bound(first)
        self._absent = len(self._chars)
        self._add(self.absent)

    def _add_row(self, page: int, row: int, characters: Any) -> None:
        ratios = characters.log_ratio.detach().tolist()
        for index, char in enumerate(characters.text):
            char = " " if char.isspace() else char
            others = [
                (other, ratio)
                for other, ratio in zip(characters.options[index], ratios[index])
                if ratio >= UNSURE and not other.isspace() and other != char
            ]
            self._put([(char, 0.0), *others], (page, row, index))
        self._put([(" ", 0.0)], None)

    def _put(self, options: list[tuple[str, float]], where: tuple[int, int, int] | None) -> None:
        """Another place; of several spaces only the first one."""
        space = (" ", 0.0)
        if not (options[:1] == [space] and self._chars and self._chars[-1][:1] in ([space], [])):
            self._chars.append(options)
            self._where.append(where)

    def _bound(self, first: int) -> None:
        """Where spans of the characters from ``first`` on may begin and end; none goes on."""
        text = "".join(options[0][0] for options in self._chars[first:])
        place = first
        for word in text.split(" "):
            starts, ends = word_bounds(word)
            self._starts += [place + start for start in starts]
            self._ends |= {place + end for end in ends}
            place += len(word) + 1
        if self._chars[first:]:
            self._chars[-1] = []

    def _add(self, phrase: str) -> None:
        self._starts.append(len(self._chars))
        for char in phrase:
            self._put([(char, 0.0)], None)
        self._ends.add(len(self._chars))
        self._put([], None)

    def begin(self, *, spaced: bool = False) -> list[_Live]:
        """Every place where a span may begin; ``spaced``: also with a space before it."""
        live = [_Live(start, start, b"", 0.0, ()) for start in self._starts]
        return live + [one._replace(at=-1 - one.start) for one in live if spaced]

    def _steps(self, live: _Live) -> Iterator[tuple[int, _Live]]:
        """The bytes that may come next, each with where it leads."""
        start, at, rest, weight, took = live
        if at < 0:  # the space before the span
            yield 0x20, live._replace(at=start)
        elif rest:
            yield rest[0], live._replace(at=at + (len(rest) == 1), rest=rest[1:])
        else:
            for number, (char, ratio) in enumerate(self._chars[at]):
                spelled = char.encode()
                more = took if number == 0 else (*took, (at, number))
                after = at + (len(spelled) == 1)
                yield spelled[0], _Live(start, after, spelled[1:], weight + ratio, more)

    def follow(self, live: Iterable[_Live], spelled: bytes) -> list[_Live]:
        """The spans that go on with these bytes."""
        for byte in spelled:
            best: dict[tuple[int, int, bytes], _Live] = {}
            for one in live:
                for step, after in self._steps(one):
                    key = after[:3]
                    if step == byte and (key not in best or best[key].weight < after.weight):
                        best[key] = after
            live = list(best.values())
        return list(live)

    def allowed(self, live: Iterable[_Live], tokens: TokenBytes) -> set[int]:
        """Tokens all of whose bytes some span goes on with."""
        found: set[int] = set()
        todo = {(one.at, one.rest, b""): one for one in live}  # wherever they began
        while todo:
            (_, _, before), one = todo.popitem()
            for byte, after in self._steps(one):
                spelled = before + bytes([byte])
                found.update(tokens.ids.get(spelled, ()))
                if spelled in tokens.prefixes:
                    todo[after.at, after.rest, spelled] = after
        return found

    def ended(self, live: Iterable[_Live]) -> list[_Live]:
        """Those spans that may end here."""
        return [one for one in live if not one.rest and one.start < one.at and one.at in self._ends]

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

    def _span(self, live: _Live) -> Span:
        if live.start == self._absent:
            return Span("", [], 0.0)
        took, words, total = dict(live.took), [], live.weight
        text, boxes, page = "", [], 0
        for at in range(live.start, live.at):
            char = self._chars[at][took.get(at, 0)][0]
            if char == " ":
                words.append(SpanWord(text, page, _union(boxes)))
                text, boxes = "", []
                continue
            place = self._where[at]
            assert place is not None  # only separators and ABSENT have no place
            page, number, index = place
            row, scale = self._pages[page][0].rows[number], self._pages[page][1]
            text += char
            boxes.append(tuple(float(edge) / scale for edge in row.boxes[index]))
            total += math.log(max(float(row.probability[index]), 1e-6))
        words.append(SpanWord(text, page, _union(boxes)))
        return Span(" ".join(word.text for word in words), words, min(total, 0.0))


def _union(boxes: Sequence[tuple[float, ...]]) -> Box:
    x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
    return x0, y0, max(b[2] for b in boxes), max(b[3] for b in boxes)


def word_bounds(word: str) -> tuple[list[int], list[int]]:
    """Where a span may begin and end in a word without spaces, as offsets.

    At its ends; behind opening and before closing punctuation; at ``: ; = |`` and brackets; behind
    a currency before an amount. Never where it would part a number from its digits or its sign.

    Example:
        >>> word_bounds("Total:$31.48,")
        ([0, 6, 7], [5, 12, 13])
    """
    places = range(len(word) + 1)
    starts = [at for at in places if word[at:] and _may_begin(word[:at], word[at:])]
    ends = [at for at in places if at and _may_end(word[:at], word[at:])]
    return starts, ends


def _may_begin(head: str, tail: str) -> bool:
    if head[-2:-1].isdigit() and tail[0].isdigit():
        return False  # 10:30
    own = _PARTS.split(head)[-1].strip(_OPEN)
    return not own or (CURRENCY.fullmatch(own) is not None and tail[0] in "0123456789.-+")


def _may_end(head: str, tail: str) -> bool:
    if not tail:
        return True
    if not head.strip(_OPEN) or (head[-1].isdigit() and tail[1:2].isdigit()):
        return False
    return not tail.strip(_CLOSE) or _PARTS.match(tail) is not None


class ExtractiveDecoding(LogitsProcessor):
    """Leaves a prompt's answer only what is a span of its pages, or :data:`ABSENT`.

    It serves one call of ``generate``: the first step's ids are the prompts. Beams and returned
    sequences of a prompt stand side by side, as ``generate`` keeps them.

    Args:
        spans: of each prompt's pages.
        tokens: the vocabulary.
        ends: ids that end an answer.
    """

    def __init__(self, spans: Sequence[PageSpans], tokens: TokenBytes, ends: Sequence[int]) -> None:
        self._spans, self._tokens, self._ends = spans, tokens, list(ends)
        self._prompt: int | None = None
        self._known: dict[tuple[int, tuple[int, ...]], list[_Live]] = {}

    def _live(self, prompt: int, said: tuple[int, ...]) -> list[_Live]:
        key = prompt, said
        if key not in self._known:
            spans = self._spans[prompt]
            if said:
                spelled = self._tokens.of.get(said[-1])
                before = self._live(prompt, said[:-1]) if spelled else []
                self._known[key] = spans.follow(before, spelled or b"")
            else:
                self._known[key] = spans.begin(spaced=not self._tokens.byte_level)
        return self._known[key]

    def _allowed(self, prompt: int, said: tuple[int, ...]) -> list[int]:
        live, spans = self._live(prompt, said), self._spans[prompt]
        found = list(spans.allowed(live, self._tokens))
        return found + self._ends if spans.ended(live) or not found else found

    def __call__(
        self, input_ids: Int[Tensor, "rows length"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """The scores, with -inf for what may not follow."""
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        beams = len(input_ids) // len(self._spans)
        masked = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids[:, self._prompt :].tolist()):
            allowed = self._allowed(row // beams, tuple(ids))
            masked[row, allowed] = scores[row, allowed]
        return masked


def end_ids(model: AlignVLMForConditionalGeneration) -> list[int]:
    """The ids that end an answer."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return list(ends) if isinstance(ends, list) else [] if ends is None else [int(ends)]


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
        rows, cols, _ = one.image_grids[0].tolist()
        found.append(((one.pages or [])[0], model.config.page_scale(size, Grid(rows, cols))))
    return PageSpans(found)
