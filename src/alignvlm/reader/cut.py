"""Lines of text cut into tokens by a language model's tokenizer, and by it alone.

Whatever the text says, it stays text; and tokens that may not be used are replaced by others that
spell the same characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

LEFT_OUT = 1000
"""Cost of leaving out a character that kept tokens cannot spell; a token costs 1."""
SPACES = ("\u0120", "\u2581", " ")
"""A space within a token: byte-level BPE's, SentencePiece's, and itself."""


class Tokens(NamedTuple):
    """Tokens of some lines one after the other; each ``[tokens]``."""

    line: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    id: NDArray[np.int64]

    def of(self, chosen: NDArray[np.bool_] | slice) -> Tokens:
        return Tokens(*(part[chosen] for part in self))

    def number(self) -> NDArray[np.int64]:
        """Of each token among those that start at the same character."""
        return rank(self.line, self.start)

    def find(self, others: Tokens, line: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the token with the same first character and number; -1 if none has.

        Args:
            others: tokens of other lines.
            line: ``[tokens]``, the line that each of them is looked for in.
        """
        keys = _key(self.line, self.start) + self.number()
        wanted = _key(line, others.start) + others.number()
        order = np.argsort(keys, kind="stable")
        place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
        return np.where(keys[place] == wanted, place, -1)

    def before(self, line: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many tokens start before a character of a line, or in lines before it."""
        return np.searchsorted(np.sort(_key(self.line, self.start)), _key(line, start))

    def whole(self) -> NDArray[np.bool_]:
        """Whether no other token covers some of its characters."""
        apart = np.ones(len(self.line) + 1, bool)
        apart[1:-1] = (self.line[1:] != self.line[:-1]) | (self.start[1:] >= self.end[:-1])
        return apart[1:] & apart[:-1]


class Cutter:
    """Cuts lines as if a space stood before each; see :class:`alignvlm.reader.spelling.Speller`.

    Args:
        text: the tokenizer's JSON.
        kept: ids that may be used; all by default.
    """

    def __init__(self, text: str, kept: Iterable[int] | None = None) -> None:
        data = json.loads(text)
        model, added = data["model"], data["added_tokens"]
        special = {token["id"] for token in added if token["special"]}
        # the post-processor may trim offsets; without it special tokens cannot be added either
        data.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        if "dropout" in model:
            model["dropout"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(data))
        splits = json.dumps([data["normalizer"], data["pre_tokenizer"]])
        self._byte_level = '"ByteLevel"' in splits
        self._continuing = model.get("continuing_subword_prefix") or ""
        self._before = self._space_before()
        vocab = model["vocab"]
        size = 1 + max(chain(special, vocab.values() if isinstance(vocab, dict) else [len(vocab)]))
        self._unknown = model.get("unk_id")
        if self._unknown is None and model.get("unk_token") is not None:
            self._unknown = self._tokenizer.token_to_id(model["unk_token"])
        names = [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []
        found = {self._tokenizer.token_to_id(name): byte for byte, name in enumerate(names)}
        self._bytes: dict[int, int] = {i: byte for i, byte in found.items() if i is not None}
        self._byte_ids = {byte: i for i, byte in self._bytes.items()}
        self._kept = np.ones(size, bool)
        if kept is not None:
            self._kept[:] = False
            self._kept[[i for i in kept if 0 <= i < size]] = True
        self._kept[[i for i in special if i != self._unknown]] = False
        # names that a page may say in letters: they are not what they stand for
        self._named = np.zeros(size, bool)
        self._named[[i for i in (self._unknown, *self._bytes) if i is not None]] = True
        self._memo: dict[tuple[str, bool], list[tuple[int, int, int]]] = {}

    def _space_before(self) -> str:
        """What stands before a line: a space, unless the tokenizer would double it."""

        def prepared(text: str) -> str:
            normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
            text = normalizer.normalize_str(text) if normalizer else text
            return "".join(s for s, _ in splitter.pre_tokenize_str(text)) if splitter else text

        bare, spaced = prepared("a"), prepared(" a")
        return "" if len(bare) > 1 and len(spaced) > len(bare) else " "

    def cut(self, texts: Sequence[str]) -> Tokens:
        """Tokens of all texts, offsets into the texts themselves."""
        shift = len(self._before)
        spaced = np.array([bool(shift) and text.startswith(" ") for text in texts], bool)
        texts = [self._before + text for text in texts]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        line = np.repeat(np.arange(len(texts)), [len(own) for own in ids])
        flat = np.fromiter(chain.from_iterable(ids), np.int64, len(line))
        spans = list(chain.from_iterable(encoding.offsets for encoding in encodings))
        if (~self._kept | self._named)[flat].any():
            rows = list(self._replaced(texts, line.tolist(), flat.tolist(), spans))
            line, flat, *edges = np.array(rows, np.int64).reshape(-1, 4).T
        else:
            edges = np.array(spans, np.int64).reshape(-1, 2).T
        length = np.array([len(text) - shift for text in texts], np.int64)[line]
        start, end = edges[0] - shift, edges[1] - shift
        # nothing but the space before the line; a normalizer may put it on the first character
        added = (end <= 0) | (self._is_space(flat) & first_of(line) & ~spaced[line])
        stays = ~added & (length > 0)
        start = np.clip(start, 0, length - 1)
        end = np.clip(end, start + 1, np.maximum(length, start + 1))
        return Tokens(*(part[stays] for part in (line, start, end, flat)))

    def _is_space(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        spaces = [self._tokenizer.token_to_id(space) for space in SPACES]
        return np.isin(ids, [i for i in spaces if i is not None])

    def _replaced(
        self, texts: Sequence[str], line: list[int], ids: list[int], spans: list[tuple[int, int]]
    ) -> Iterator[tuple[int, int, int, int]]:
        """``(text, id, start, end)`` of tokens that may be used, for the given ones."""
        first = 0
        while first < len(ids):
            # pieces of one character are looked at together
            last, (start, end) = first + 1, spans[first]
            while last < len(ids) and line[last] == line[first] and spans[last][0] < end:
                end = max(end, spans[last][1])
                last += 1
            own = ids[first:last]
            literal = len(own) == 1 and self._literal(own[0], texts[line[first]][start:end])
            if literal or not self._kept[own].all():
                lead = bool(self._continuing) and self._name(own[0]).startswith(self._continuing)
                written = self._written(own, literal)
                for token, begin, stop in self._respelled(written, lead, end - start):
                    yield line[first], token, start + begin, start + stop
            elif end - start > 1 and all(token in self._bytes for token in own):
                # neighbours without a token, as bytes
                for token, begin in self._of_each(own, end - start):
                    yield line[first], token, start + begin, start + begin + 1
            else:
                for token, span in zip(own, spans[first:last]):
                    yield line[first], token, *span
            first = last

    def _name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def _literal(self, token: int, text: str) -> bool:
        return bool(self._named[token]) and self._name(token) == text

    def _written(self, ids: list[int], literal: bool) -> str:
        """The characters of neighbouring tokens, as tokens write them; unknown ones have none."""
        if literal:
            return self._name(ids[0])
        parts = bytearray()
        for token in ids:
            if token in self._bytes:
                parts.append(self._bytes[token])
            elif token != self._unknown:
                parts += self._name(token).removeprefix(self._continuing).encode()
        return parts.decode(errors="ignore")

    def _of_each(self, ids: list[int], characters: int) -> Iterator[tuple[int, int]]:
        """Bytes with the number of their character, among as many."""
        number = -1
        for token in ids:
            number += self._bytes[token] & 0xC0 != 0x80
            yield token, min(max(number, 0), characters - 1)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        """Tokens to spell with."""
        usable = self._kept & ~self._named
        return {t: i for t, i in self._tokenizer.get_vocab().items() if usable[i]}

    def _respelled(self, written: str, lead: bool, span: int) -> Iterator[tuple[int, int, int]]:
        """``(id, start, end)``: kept tokens that spell it, offsets within ``span`` characters."""
        key = written, lead
        if key not in self._memo:
            self._memo[key] = self._fewest(*key)
        count = sum(self._boundaries(written)[:-1])
        missing = max(count - span, 0)  # the space before a line is none of its characters
        for token, start, end in self._memo[key]:
            start = min(max(start - missing, 0), max(span - 1, 0))
            yield token, start, min(max(end - missing, start + 1), span)

    def _boundaries(self, written: str) -> list[bool]:
        """Whether a character begins at each place, and one more at the end."""
        if not self._byte_level:
            return [True] * (len(written) + 1)
        return [not 0x80 <= BYTES.get(char, 0) < 0xC0 for char in written] + [True]

    def _fewest(self, written: str, lead: bool) -> list[tuple[int, int, int]]:
        """As few kept tokens as spell it, with their characters; as few left out as possible."""
        begins, length = self._boundaries(written), len(written)
        # from each place on: cost, tokens of the next step, where it leads
        best: list[tuple[int, tuple[int, ...], int]] = [(0, (), length)] * (length + 1)
        for place in reversed(range(length)):
            prefix = self._continuing if lead or place else ""
            steps = []
            for end in range(place + 1, length + 1):
                token = self._vocabulary.get(prefix + written[place:end])
                if token is not None:
                    steps.append((best[end][0] + 1, (token,), end))
            if self._byte_ids:
                found = [self._byte_ids.get(byte, -1) for byte in written[place].encode()]
                if all(token >= 0 and self._kept[token] for token in found):
                    steps.append((best[place + 1][0] + len(found), tuple(found), place + 1))
            if begins[place] or not place:
                end = next(p for p in range(place + 1, length + 1) if begins[p])
                steps.append((best[end][0] + LEFT_OUT, (), end))
            # none: a piece of a character that cannot be spelled to its end
            stuck = LEFT_OUT * (length + 1), (), length
            best[place] = min(steps, key=lambda step: (step[0], -step[2]), default=stuck)
        number = [count - 1 for count in accumulate(begins)]
        result, place = [], 0
        while place < length:
            _, tokens, end = best[place]
            first = max(number[place], 0)
            result += [(token, first, max(number[end - 1], first) + 1) for token in tokens]
            place = end
        return result


def _key(line: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Orders tokens by line and first character, with room for a number."""
    return (line << 40) + (start << 16)


def rank(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each entry within its run of equal keys."""
    starts = np.flatnonzero(first_of(*keys))
    return np.arange(len(keys[0])) - np.repeat(starts, np.diff(np.append(starts, len(keys[0]))))


def first_of(*keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an entry begins a run of equal keys."""
    new = np.ones(len(keys[0]), bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return new


def _byte_characters() -> dict[str, int]:
    """Byte-level BPE's characters for bytes: printable ones are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + number): byte for number, byte in enumerate(others)},
    }


BYTES = _byte_characters()
"""See ``bytes_to_unicode`` in GPT-2's encoder."""
