"""Teach a speller and ALIGN from plain text which characters make which token.

No page is drawn: lines of text become soft characters, blurred and now and then wrong as a
recogniser's are, and the loss is that of grounded alignment: the token that starts at a character,
or none. It trains about a hundred times more tokens a second than pages do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..connectors import AlignConnector
from ..ops.statistics import cached_vocab_stats
from ..speller import Speller

LOOKALIKES = (
    "0Oo", "1lI|i!", "5S", "8B", "2Z", "6b", "gq9", "cCeo", "vV", "wW", "xX", "sS", "uUv", "kK",
    "pP", "zZ", ".,", ":;", "'`‘’", "\"“”", "-–—_", "nrh", "tf", "aeo", "mn", "DO", "EF", "PR",
)  # fmt: skip
"""Characters a recogniser takes for one another."""


class Lines(NamedTuple):
    """A batch of lines.

    Attributes:
        chars: soft characters, float32 ``[B, L, alphabet]``; zeros beyond a line's end.
        starts: 1 where a token starts, 0 where none does, -1 beyond the end; int64 ``[B, L]``.
        targets: row of P_vocab of the token that starts, -1 where none does or it is not kept.
    """

    chars: Tensor
    starts: Tensor
    targets: Tensor


class LineMaker:
    """Draws lines: real text, words put together from the vocabulary, and random strings.

    Args:
        lines: real text.
        tokenizer: of the language model (fast).
        token_ids: kept language-model ids, sorted, int64.
        alphabet: the characters that can be told apart; others are left out.
        blank_id: the token that is never a target.
    """

    def __init__(
        self, lines: Sequence[str], tokenizer: Any, token_ids: Tensor, alphabet: str, blank_id: int
    ) -> None:
        self.lines, self.tokenizer = lines, tokenizer
        self.index = {char: number for number, char in enumerate(alphabet)}
        self.row = np.full(len(tokenizer), -1)
        self.row[token_ids.numpy()] = np.arange(len(token_ids))
        self.blank_id, self.alphabet = blank_id, alphabet
        texts = tokenizer.batch_decode(token_ids[:, None])
        usable = [t for t in texts if len(t.strip()) > 1 and set(t) <= self.index.keys()]
        self.words = [t for t in usable if t.startswith(" ")]
        self.pieces = [t for t in usable if not t.startswith(" ")]
        groups: dict[int, list[int]] = {}
        for group in LOOKALIKES:
            ids = [self.index[c] for c in group if c in self.index]
            for i in ids:
                groups.setdefault(i, []).extend(j for j in ids if j != i)
        self.confused = {i: np.array(v) for i, v in groups.items()}

    def text(self, rng: np.random.Generator) -> str:
        """One line."""
        kind = rng.random()
        if kind < 0.6:
            text = self.lines[rng.integers(len(self.lines))]
            if rng.random() < 0.5:  # words at the start of a line are split in other ways
                words = text.split()
                text = " ".join(words[int(rng.integers(len(words))) :][: rng.integers(1, 5)])
        elif kind < 0.9:
            text = "".join(self._word(rng) for _ in range(rng.integers(2, 12)))
        else:
            text = " ".join(self._random(rng) for _ in range(rng.integers(1, 8)))
        case = rng.random()
        text = text.upper() if case < 0.12 else text.title() if case < 0.18 else text
        text = "".join(c for c in text if c in self.index)
        return " ".join(text.split())[:120]

    def _word(self, rng: np.random.Generator) -> str:
        word = self.words[rng.integers(len(self.words))]
        if rng.random() < 0.2:
            word += self.pieces[rng.integers(len(self.pieces))]
        return word + (",.:;)-/"[rng.integers(7)] if rng.random() < 0.15 else "")

    def _random(self, rng: np.random.Generator) -> str:
        kind, size = rng.random(), int(rng.integers(1, 10))
        if kind < 0.4:
            digits = "".join(map(str, rng.integers(0, 10, size)))
            form = rng.integers(6)
            return (
                digits, f"${digits}.{rng.integers(10, 99)}", f"{digits[:3]},{digits[3:]}",
                f"{digits[:2]}/{digits[2:4]}/{rng.integers(1900, 2030)}", f"{digits}%",
                f"{digits[:3]}-{digits[3:]}",
            )[form]  # fmt: skip
        letters = self.alphabet[1:95]
        if kind < 0.7:
            letters = letters[-26:] if kind < 0.55 else letters[-58:-32]
        return "".join(letters[i] for i in rng.integers(0, len(letters), size))

    def batch(self, size: int, seed: Sequence[int]) -> Lines:
        """``size`` lines; the same for the same ``seed``."""
        rng = np.random.default_rng(seed)
        texts = [t for t in (self.text(rng) for _ in range(size)) if t]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        rows = [
            self._spoil(rng, *self._labels(text, ids, offsets))
            for text, ids, offsets in zip(
                texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]
        longest = max(len(chars) for chars, _, _ in rows)
        chars = torch.zeros(len(rows), longest, len(self.index))
        starts = torch.full((len(rows), longest), -1)
        targets = torch.full((len(rows), longest), -1)
        for row, (soft, start, target) in enumerate(rows):
            chars[row, : len(soft)] = torch.from_numpy(soft)
            starts[row, : len(soft)] = torch.from_numpy(start)
            targets[row, : len(soft)] = torch.from_numpy(target)
        return Lines(chars, starts, targets)

    def _labels(
        self, text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chars = np.array([self.index[c] for c in text])
        start, target = np.zeros(len(text), np.int64), np.full(len(text), -1)
        for token, (begin, end) in zip(ids, offsets, strict=True):
            if token == self.blank_id:
                continue
            at = next((i for i in range(begin, end) if text[i] != " "), begin)
            start[at], target[at] = 1, self.row[token]
        return chars, start, target

    def _spoil(
        self, rng: np.random.Generator, chars: np.ndarray, start: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Soft characters with a recogniser's doubts, and now and then a character too few."""
        if rng.random() < 0.3:
            kept = (rng.random(len(chars)) > 0.01) | (start == 1)
            chars, start, target = chars[kept], start[kept], target[kept]
        soft = np.zeros((len(chars), len(self.index)), np.float32)
        sure = 1 - rng.random(len(chars)) ** 30 * 0.9
        soft[np.arange(len(chars)), chars] = sure
        for i in np.flatnonzero(sure < 0.97):
            others = self.confused.get(int(chars[i]))
            other = rng.choice(others) if others is not None else rng.integers(len(self.index))
            soft[i, other] += (1 - sure[i]) * rng.random()
        return soft, start, target


class SpellingLoss(NamedTuple):
    """Losses in nats and shares of right ones; ``right`` and ``tokens`` count tokens."""

    loss: Tensor
    start: float
    token: float
    right: int
    tokens: int
    start_errors: int
    characters: int


def spelling_loss(
    speller: Speller,
    align: AlignConnector,
    lines: Lines,
    candidates: int | None,
    generator: torch.Generator | None = None,
) -> SpellingLoss:
    """Where tokens start, and which they are.

    The softmax of P_vocab goes over the batch's own tokens and others drawn at random, its
    LayerNorm over the whole kept vocabulary: its statistics come from W2's, exactly.

    Args:
        candidates: tokens in the softmax; ``None``: all.
    """
    windows = speller.windows(lines.chars)
    known = lines.starts >= 0
    logits = speller.starts(windows)[known]
    wanted = lines.starts[known].float()
    start_loss = F.binary_cross_entropy_with_logits(logits, wanted)
    here = lines.targets >= 0
    hidden = align.hidden(speller.features(windows[here]))
    targets = lines.targets[here]
    size = len(align.w2.weight)
    if candidates is None or candidates >= size:
        rows = torch.arange(size)
    else:
        drawn = torch.randint(size, (candidates,), generator=generator)
        rows = torch.unique(torch.cat([targets, drawn]))
    scores = _normalised(align, hidden, rows)
    token_loss = F.cross_entropy(scores, torch.searchsorted(rows, targets))
    best = rows[scores.argmax(-1)]
    return SpellingLoss(
        start_loss + token_loss,
        start_loss.item(),
        token_loss.item(),
        int((best == targets).sum()),
        len(targets),
        int(((logits > 0) != (wanted > 0)).sum()),
        len(wanted),
    )


def _normalised(align: AlignConnector, hidden: Tensor, rows: Tensor) -> Tensor:
    """Logits of some rows of P_vocab, after the outer LayerNorm."""
    scores = hidden @ align.w2.weight[rows].T
    if align.outer_norm_weight is None:
        return scores
    mean, variance = cached_vocab_stats(align.w2.weight.detach()).moments(hidden)
    scores = (scores - mean[:, None]) * torch.rsqrt(variance + align.config.eps)[:, None]
    return scores * align.outer_norm_weight[rows] + align.outer_norm_bias[rows]
