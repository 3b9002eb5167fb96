"""From the characters of a line to tokens: spelled exactly, and the doubt kept.

The language model's own tokenizer cuts the most probable characters, so nothing is trained and no
word is spelled as the model never sees it. Where a character is unsure, the line is cut again with
each of the other characters in its place, and with pairs of them within a word. At each token of
the most probable spelling the others that would start there share the probability::

    text      T o t a l   1 2            log p('l' for '1') - log p('1') = log 1/3
    tokens    "Total"  " "  "1"  "2"
    with l    "Total"  " l"      "2"     starts no token at the '1': says nothing of that place
    q         " ": 0.75, " l": 0.25      at the space; "1" and "2" are sure

A hypothesis weighs the product of its characters' ratios and counts at those places alone that its
characters have a say in; others would multiply every candidate of the place alike.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from .characters import Characters
from .cut import Cutter, Tokens
from .doubt import Other, Window, disagreeing, hypotheses, share, votes_of


class Spelled(NamedTuple):
    """The tokens of one line, in reading order.

    Attributes:
        start: the first character of each token, index into the text; a space that the token begins
            with is its first character. Tokens that are pieces of one character share it.
        end: one past its last character, after ``start``.
        ids: int64 ``[tokens, k]``, candidates; the first is the most probable spelling's, the
            others follow by probability, -1 is padding.
        q: float ``[tokens, k]``, their probabilities. Each row sums to 1, the first is the largest,
            padding has 0. Differentiable with respect to ``log_ratio``.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    ids: Int[Tensor, "tokens k"]
    q: Float[Tensor, "tokens k"]


class Speller:
    """A tokenizer that spells lines of text, and nothing but text.

    A line is cut as if a space stood before it (once, whoever adds it), so that words are spelled
    as in running text; a token of that space alone is left out. Added tokens are never matched: a
    page that says ``<|im_end|>`` says so in letters.

    Args:
        tokenizer: it is copied; its truncation, padding and special tokens do not matter.
        kept: ids of a pruned vocabulary. Other tokens are replaced by kept ones that spell the same
            characters, as few as possible; a character that none spells is left out.

    Example:
        >>> speller = Speller(Tokenizer.from_file("tokenizer.json"))
        >>> characters = Characters("Total", ("", "", "", "", "1"), log_ratio)  # [5, 1]
        >>> speller.spell([characters])[0].start
        (0,)
    """

    def __init__(self, tokenizer: Tokenizer, *, kept: Iterable[int] | None = None) -> None:
        self._load(tokenizer.to_str(), kept)

    @classmethod
    def of(cls, tokenizer: Any, *, kept: Iterable[int] | None = None) -> Speller:
        """The speller of a language model's fast tokenizer."""
        return cls(tokenizer.backend_tokenizer, kept=kept)

    @classmethod
    def from_buffer(
        cls, buffer: UInt8[Tensor, " bytes"], *, kept: Iterable[int] | None = None
    ) -> Speller:
        """The speller that :meth:`to_buffer` stored; ``kept`` is not stored."""
        speller = cls.__new__(cls)
        speller._load(zlib.decompress(buffer.cpu().numpy().tobytes()).decode(), kept)
        return speller

    def to_buffer(self) -> UInt8[Tensor, " bytes"]:
        """The tokenizer's JSON, compressed: a module's buffer, so that weights can carry it."""
        return torch.frombuffer(bytearray(zlib.compress(self._json.encode())), dtype=torch.uint8)

    def spell(
        self, lines: Sequence[Characters], *, max_candidates: int = 8, least: float = 1e-3
    ) -> list[Spelled]:
        """Tokens of some lines.

        Args:
            lines: all of a page at once is fastest. Their ``log_ratio`` lie on one device.
            max_candidates: k at most; fewer where no token of these lines has as many.
            least: hypotheses that weigh less, relative to the most probable characters, are
                dropped.

        Returns:
            One :class:`Spelled` a line; ``ids`` and ``q`` are on the device of ``log_ratio`` and
            equally wide for all lines. ``q`` is fp32, fp64 for fp64 ratios.

        Raises:
            ValueError: ``options`` or ``log_ratio`` do not fit the text.
        """
        if not lines:
            return []
        for line in lines:
            if not len(line.text) == len(line.options) == len(line.log_ratio):
                raise ValueError(
                    f"{len(line.text)} characters have {len(line.options)} options and log_ratio "
                    f"{tuple(line.log_ratio.shape)}"
                )
        ratios = torch.cat([line.log_ratio.reshape(-1) for line in lines])
        ratios = ratios if ratios.dtype == torch.float64 else ratios.float()
        others = hypotheses(lines, ratios, least if max_candidates > 1 else math.inf)
        base, tokens = self._cut(lines, others)
        votes = votes_of(lines, base, tokens, others)
        ids, q = share(base.id, votes, others, ratios, max_candidates)
        count = np.bincount(base.line, minlength=len(lines)).tolist()
        result = []
        for stop, own_ids, own_q in zip(accumulate(count), ids.split(count), q.split(count)):
            own = slice(stop - len(own_ids), stop)
            start, end = base.start[own].tolist(), base.end[own].tolist()
            result.append(Spelled(tuple(start), tuple(end), own_ids, own_q))
        return result

    def _cut(self, lines: Sequence[Characters], others: Sequence[Other]) -> tuple[Tokens, Tokens]:
        """Tokens of the lines and of the hypotheses, ``line`` counting these; offsets into lines.

        Of a long line only some words around a change are cut, if the line itself could be cut
        there.
        """
        whole = [Window(number, 0, 0, len(line.text)) for number, line in enumerate(lines)]
        parts = sorted({other.window for other in others} - set(whole))
        windows = [*whole, *parts, *(other.window for other in others)]
        texts = [lines[w.line].text[w.begin : w.stop] for w in windows[: len(whole) + len(parts)]]
        texts += [other.text(lines[other.window.line].text) for other in others]
        tokens = self._cutter.cut(texts)
        begin = np.array([window.begin for window in windows], np.int64)[tokens.line]
        tokens = tokens._replace(start=tokens.start + begin, end=tokens.end + begin)
        first = len(whole) + len(parts)
        at = np.searchsorted(tokens.line, [len(whole), first])
        base, seen, respelled = (tokens.of(slice(*s)) for s in pairwise([0, *at, None]))
        wrong = disagreeing(base, seen._replace(line=seen.line - len(whole)), parts)
        respelled = respelled._replace(line=respelled.line - first)
        speaks = np.array([other.window.speaks for other in others], np.int64)
        respelled = respelled.of(respelled.start >= speaks[respelled.line])
        if wrong:
            again = [number for number, other in enumerate(others) if other.window in wrong]
            respelled = respelled.of(~np.isin(respelled.line, again))
            lines_again = [(others[number], whole[others[number].window.line]) for number in again]
            more = self._cutter.cut([o.text(lines[w.line].text, w) for o, w in lines_again])
            more = more._replace(line=np.array(again, np.int64)[more.line])
            respelled = Tokens(*(np.concatenate(both) for both in zip(respelled, more)))
        return base, respelled

    def _load(self, text: str, kept: Iterable[int] | None) -> None:
        self._json, self._cutter = text, Cutter(text, kept)
