"""Teach a speller and ALIGN from plain text which characters make which token.

No page is drawn: lines of text become soft characters, blurred and now and then wrong as a
recogniser's are, and the loss is that of grounded alignment: the token that starts at a character,
and how long it is. Some characters inside tokens are asked about too, as if the text began there:
a byte-pair tokenizer spells the rest of a word in the same way wherever it was cut before, so a
speller that took one wrong token goes on with right ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..connectors import AlignConnector
from ..data.corpus import MONTHS
from ..ops.statistics import cached_vocab_stats
from ..speller import AFTER, Speller, chain

Labels = NDArray[np.int64]
REMEMBERED = 500_000
"""Rests of words whose first token is remembered."""

LOOKALIKES = (
    "0Oo", "1lI|i!", "5S", "8B", "2Z", "6b", "gq9", "cCeo", "vV", "wW", "xX", "sS", "uUv", "kK",
    "pP", "zZ", ".,", ":;", "'`‘’", "\"“”", "-–—_", "nrh", "tf", "aeo", "mn", "DO", "EF", "PR",
)  # fmt: skip
"""Characters a recogniser takes for one another."""


class Lines(NamedTuple):
    """A batch of lines.

    Attributes:
        chars: soft characters, float32 ``[B, L, alphabet]``; zeros beyond a line's end.
        lengths: characters of the token that starts, 0 where none does; -1: not asked; int64
            ``[B, L]``.
        targets: row of P_vocab of the token that starts; -1: none, not kept, or not asked.
        starts: where the tokenizer's own tokens start, bool ``[B, L]``.
        texts: the lines.
    """

    chars: Tensor
    lengths: Tensor
    targets: Tensor
    starts: Tensor
    texts: list[str]


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
        self.first: dict[str, tuple[int, int]] = {}  # text to its first token's length and row
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
        if kind < 0.5:
            text = self.lines[rng.integers(len(self.lines))]
            if rng.random() < 0.5:  # words at the start of a line are split in other ways
                words = text.split()
                text = " ".join(words[int(rng.integers(len(words))) :][: rng.integers(1, 5)])
        elif kind < 0.8:
            text = "".join(self._word(rng) for _ in range(rng.integers(2, 12)))
        else:
            text = " ".join(self._random(rng) for _ in range(rng.integers(1, 8)))
        case = rng.random()
        text = text.upper() if case < 0.12 else text.title() if case < 0.18 else text
        text = "".join(c for c in text if c in self.index)
        return " ".join(text.split())[:120]

    def _word(self, rng: np.random.Generator) -> str:
        word = self.words[rng.integers(len(self.words))]
        if rng.random() < 0.5:
            # words that begin like a known one and go on otherwise: a reader must look at all of it
            word = word[: int(rng.integers(2, len(word) + 1))]
            word += self.pieces[rng.integers(len(self.pieces))]
        return word + (",.:;)-/"[rng.integers(7)] if rng.random() < 0.15 else "")

    def _random(self, rng: np.random.Generator) -> str:
        if rng.random() < 0.5:
            return self._code(rng)
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

    def _code(self, rng: np.random.Generator) -> str:
        """What documents are numbered and dated with: ``DN94-8986``, ``12-Feb-2009``."""
        number = "".join(map(str, rng.integers(0, 10, rng.integers(2, 7))))
        if rng.random() < 0.3:
            month, sign = MONTHS[rng.integers(12)][:3], "- /."[rng.integers(4)]
            return sign.join((str(rng.integers(1, 32)), month, str(rng.integers(1990, 2030))))
        capitals = "".join(chr(65 + i) for i in rng.integers(0, 26, rng.integers(1, 4)))
        sign = ("", "-", "/", " ")[rng.integers(4)]
        tail = sign + str(rng.integers(10, 10_000)) if rng.random() < 0.5 else ""
        return capitals + sign * bool(rng.random() < 0.4) + number + tail

    def batch(self, size: int, seed: Sequence[int], inside: float = 0.25) -> Lines:
        """``size`` lines, a space before each; the same for the same ``seed``.

        Args:
            inside: share of the characters inside tokens that are asked about.
        """
        rng = np.random.default_rng(seed)
        texts = [" " + text for text in (self.text(rng) for _ in range(size)) if text]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        rows = []
        for text, ids, offsets in zip(
            texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            labels = self._labels(text, ids, offsets)
            self._ask_inside(text, labels, rng, inside)
            rows.append(self._spoil(rng, labels))
        longest = max(len(soft) for soft, _ in rows)
        chars = torch.zeros(len(rows), longest, len(self.index))
        marks = torch.full((3, len(rows), longest), -1)
        for row, (soft, labels) in enumerate(rows):
            chars[row, : len(soft)] = torch.from_numpy(soft)
            marks[:, row, : len(soft)] = torch.from_numpy(labels[1:])
        return Lines(chars, marks[0], marks[1], marks[2] == 1, texts)

    def _labels(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Labels:
        """``[4, L]``: character, length, target, starts; spaces inside a token have length 0."""
        labels = np.full((4, len(text)), -1)
        labels[0] = [self.index[c] for c in text]
        labels[1, [c == " " for c in text]] = 0
        labels[3] = 0
        for token, (begin, end) in zip(ids, offsets, strict=True):
            at = next((i for i in range(begin, end) if text[i] != " "), begin)
            if token != self.blank_id and at > 0 and not labels[3, at]:
                labels[1:, at] = end - at, self.row[token], 1
        labels[1:3, 0] = -1  # the space before the line is there to be seen
        return labels

    def _ask_inside(
        self, text: str, labels: Labels, rng: np.random.Generator, share: float
    ) -> None:
        """Fill in what would start at some characters inside tokens."""
        unasked = np.flatnonzero((labels[1] < 0) & (rng.random(len(text)) < share))
        places = [int(at) for at in unasked if at > 0]
        rests = [text[at:].split(" ", 1)[0][: 2 * AFTER] for at in places]
        unknown = sorted(set(rests) - self.first.keys())
        if unknown:
            if len(self.first) > REMEMBERED:
                self.first.clear()
                unknown = sorted(set(rests))
            encoded = self.tokenizer(unknown, add_special_tokens=False, return_offsets_mapping=True)
            for rest, ids, offsets in zip(
                unknown, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                self.first[rest] = (offsets[0][1], int(self.row[ids[0]]))
        for at, rest in zip(places, rests, strict=True):
            labels[1:3, at] = self.first[rest]

    def _spoil(self, rng: np.random.Generator, labels: Labels) -> tuple[NDArray[Any], Labels]:
        """Soft characters with a recogniser's doubts, and now and then a character too few."""
        if rng.random() < 0.3:
            kept = (rng.random(labels.shape[1]) > 0.01) | (labels[3] == 1)
            ends = np.minimum(np.arange(len(kept)) + np.maximum(labels[1], 0), len(kept))
            count = np.concatenate([[0], kept.cumsum()])
            length = count[ends] - count[:-1]
            labels[1] = np.where(labels[1] > 0, length, labels[1])
            labels = labels[:, kept]
        chars = labels[0]
        soft = np.zeros((len(chars), len(self.index)), np.float32)
        sure = 1 - rng.random(len(chars)) ** 30 * 0.9
        soft[np.arange(len(chars)), chars] = sure
        for i in np.flatnonzero(sure < 0.97):
            others = self.confused.get(int(chars[i]))
            other = rng.choice(others) if others is not None else rng.integers(len(self.index))
            soft[i, other] += (1 - sure[i]) * rng.random()
        return soft, labels


class SpellingLoss(NamedTuple):
    """Losses in nats; how many of the asked ones are right.

    Attributes:
        loss: sum of both.
        right, tokens: tokens named right, and asked for.
        right_lengths, lengths: likewise.
    """

    loss: Tensor
    right: int
    tokens: int
    right_lengths: int
    lengths: int


def spelling_loss(
    speller: Speller,
    align: AlignConnector,
    lines: Lines,
    candidates: int | None,
    alike: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SpellingLoss:
    """How long the tokens are, and which they are.

    The softmax of P_vocab goes over the batch's own tokens, those alike and others drawn at random,
    its LayerNorm over the whole kept vocabulary: its statistics come from W2's, exactly.

    Args:
        candidates: tokens drawn at random; ``None``: the softmax goes over all.
        alike: :func:`nearest_rows` of W2. Without them "traditional" is hardly ever beside
            "tradition" in a batch, and is not told apart from it.
    """
    asked = lines.lengths >= 0
    wanted, targets = lines.lengths[asked].clamp_max(AFTER), lines.targets[asked]
    features = speller.features(
        speller.windows(lines.chars)[asked], speller.beginnings(lines.chars)[asked]
    )
    lengths = speller.lengths(features)
    length_loss = F.cross_entropy(lengths, wanted)
    here = targets >= 0
    hidden, targets = align.hidden(features[here]), targets[here]
    size = len(align.w2.weight)
    if candidates is None or candidates >= size:
        rows = torch.arange(size)
    else:
        drawn = torch.randint(size, (candidates,), generator=generator)
        near = targets[:0] if alike is None else alike[torch.unique(targets)].flatten()
        rows = torch.unique(torch.cat([targets, near, drawn]))
    scores = _normalised(align, hidden, rows)
    token_loss = F.cross_entropy(scores, torch.searchsorted(rows, targets))
    best = rows[scores.argmax(-1)]
    return SpellingLoss(
        length_loss + token_loss,
        int((best == targets).sum()),
        len(targets),
        int((lengths.argmax(-1) == wanted).sum()),
        len(wanted),
    )


@torch.no_grad()
def nearest_rows(weight: Tensor, count: int) -> Tensor:
    """The ``count`` rows of W2 nearest to each in direction, centred; int64 ``[V, count]``."""
    rows = F.normalize(weight - weight.mean(0), dim=-1)
    found = []
    for block in rows.split(1024):
        cosine = block @ rows.T
        found.append(cosine.topk(count + 1, dim=-1).indices[:, 1:])
    return torch.cat(found)


class Spelled(NamedTuple):
    """How lines come out: tokens in their places, and words of which every character is there.

    Attributes:
        right, tokens: the tokenizer's own tokens that are said where they start.
        whole, words: words that the tokens said spell, in whatever pieces.
    """

    right: int
    tokens: int
    whole: int
    words: int


@torch.no_grad()
def spell(speller: Speller, align: AlignConnector, lines: Lines, tokens: Sequence[str]) -> Spelled:
    """Read lines as a page encoder does, each token where the one before it ends.

    Args:
        tokens: text of each row of P_vocab.
    """
    features = speller.features(speller.windows(lines.chars), speller.beginnings(lines.chars))
    lengths = speller.lengths(features).argmax(-1)
    known = lines.chars.any(-1).sum(-1).tolist()
    right = whole = words = 0
    for row, text in enumerate(lines.texts):
        starts = [1 + at for at in chain(lengths[row, 1 : known[row]].tolist())]
        hidden = align.hidden(features[row, starts])
        said = _normalised(align, hidden, torch.arange(len(align.w2.weight))).argmax(-1)
        right += int((lines.starts[row, starts] & (lines.targets[row, starts] == said)).sum())
        heard = "".join(tokens[i] for i in said.tolist()).split()
        wanted = text.split()
        words += len(wanted)
        whole += sum(
            size for _, _, size in SequenceMatcher(None, wanted, heard, False).get_matching_blocks()
        )
    return Spelled(right, int(lines.starts.sum()), whole, words)


def _normalised(align: AlignConnector, hidden: Tensor, rows: Tensor) -> Tensor:
    """Logits of some rows of P_vocab, after the outer LayerNorm."""
    scores = hidden @ align.w2.weight[rows].T
    if align.outer_norm_weight is None:
        return scores
    mean, variance = cached_vocab_stats(align.w2.weight.detach()).moments(hidden)
    scores = (scores - mean[:, None]) * torch.rsqrt(variance + align.config.eps)[:, None]
    return scores * align.outer_norm_weight[rows] + align.outer_norm_bias[rows]
