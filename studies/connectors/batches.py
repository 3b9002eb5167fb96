"""Pages and questions as the language model gets them: prompt, cells, question, answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from .settings import D_CELL, MOST_CELLS
from .store import STEPS, Pages

READ = "Read the text on the page."
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
MOST_ANSWER = 64
"""Tokens of an answer that is trained on; longer ones are cut."""
OCTAVES = 6
SEVERAL = 96
"""Prompts of several pages that are measured."""


@dataclass(frozen=True)
class Question:
    """What is asked about a page, or about one of several in one prompt.

    Attributes:
        among: all pages of the prompt, ``page`` one of them; empty: ``page`` alone.
    """

    page: int
    question: str
    answer: str
    among: tuple[int, ...] = ()

    @property
    def pages(self) -> tuple[int, ...]:
        """All pages of the prompt, in order."""
        return self.among or (self.page,)


@dataclass(frozen=True)
class Batch:
    """Some questions, padded at the right.

    Attributes:
        ids: int64 ``[b, n]``; 0 where visual tokens or padding stand.
        visual: int64 ``[v]``, flat places of the visual tokens in ``ids``.
        taken: int64 ``[v]``, which visual token stands there: flat in ``[pages, tokens]``.
        cells: ``[pages, MOST_CELLS, D_CELL]`` of all prompts, zeros behind each page's last one.
        kept: int64 ``[c]``, flat places of real cells in ``cells``.
        targets: int64 ``[c]``, the token that starts in each real cell.
        answers: int64 ``[a]``, flat places whose next token is of an answer, and ``wanted`` which.
        lengths: int64 ``[b]``, places of each prompt (without its answer).
    """

    ids: Tensor
    visual: Tensor
    taken: Tensor
    cells: Tensor
    kept: Tensor
    targets: Tensor
    answers: Tensor
    wanted: Tensor
    lengths: Tensor

    @property
    def ends(self) -> Tensor:
        """Places of each prompt with what of its answer is fed back, int64 ``[b]``."""
        width = self.ids.shape[1]
        places = self.answers % width + 1
        return self.lengths.scatter_reduce(0, self.answers // width, places, "amax")

    def to(self, device: str) -> Batch:
        """On a device."""
        moved = (t.to(device, non_blocking=True) for t in vars(self).values())
        return Batch(*moved)


def place_code(places: Tensor) -> Tensor:
    """Sines and cosines of x and y, ``[n, 24]``; six octaves from half a page on."""
    octaves = torch.pi * 2.0 ** torch.arange(OCTAVES, device=places.device)
    angle = (places.float() / 255)[:, :, None] * octaves
    return torch.cat((angle.sin(), angle.cos()), -1).flatten(1)


class Batcher:
    """Makes batches for one connector.

    Args:
        pages: the stored pages.
        folder: of the language model, for its tokenizer.
        tokens_of: visual tokens of a page with that many cells; ``None``: the page's text is given
            in their place.
    """

    def __init__(self, pages: Pages, folder: Path, tokens_of: Callable[[int], int] | None) -> None:
        self.pages, self.tokens_of = pages, tokens_of
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self._cells: dict[int, Tensor] = {}
        self._encoded: dict[str, list[int]] = {}
        (self.end,) = self.encode(END)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; remembered, not to be changed."""
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._encoded[text]

    def cells(self, page: int) -> Tensor:
        """Features and places of a page's cells, float32 ``[n, D_CELL]``."""
        if page not in self._cells:
            own = self.pages.cells(page)
            features = torch.from_numpy(self.pages.features[own]).float() / STEPS
            places = place_code(torch.from_numpy(self.pages.places[own]))
            self._cells[page] = torch.cat((features, places), 1)
        return self._cells[page]

    def batch(self, questions: Sequence[Question], *, answers: bool = True) -> Batch:
        """Put questions side by side; without ``answers`` for generation."""
        pages = [page for asked in questions for page in asked.pages]
        cells = torch.zeros(len(pages), MOST_CELLS, D_CELL)
        kept, targets = [], []
        for i, page in enumerate(pages):
            own = self.cells(page)
            cells[i, : len(own)] = own
            kept.append(i * MOST_CELLS + np.arange(len(own)))
            targets.append(self.pages.targets[self.pages.cells(page)])
        rows, counts, visual, lengths, places = [], [], [], [], []
        wanted: list[int] = []
        for i, asked in enumerate(questions):
            row = list(self.encode(BEFORE))
            for page in asked.pages:
                count = 0
                if self.tokens_of is None:
                    row += self.encode(self.pages.meta[page]["text"] + "\n")
                else:
                    count = self.tokens_of(len(self.cells(page)))
                visual.append((i, len(row), count))
                counts.append(count)
                row += [0] * count
            after = f"{asked.question}{AFTER}"
            row += self.encode(after if self.tokens_of is None else "\n" + after)
            lengths.append(len(row))
            if answers:
                answer = [*self.encode(asked.answer)[:MOST_ANSWER], self.end]
                places.append((i, len(row) - 1, len(answer)))
                wanted += answer
                row = row + answer[:-1]
            rows.append(row)
        width = -(-max(map(len, rows)) // 8) * 8
        ids = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        per_page = 0 if self.tokens_of is None else self.tokens_of(MOST_CELLS)
        taken = [i * per_page + np.arange(count) for i, count in enumerate(counts)]
        return Batch(
            torch.from_numpy(ids),
            _flat([(i * width + start, count) for i, start, count in visual]),
            torch.from_numpy(np.concatenate(taken)),
            cells,
            torch.from_numpy(np.concatenate(kept)),
            torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            _flat([(i * width + start, count) for i, start, count in places]),
            torch.tensor(wanted, dtype=torch.int64),
            torch.tensor(lengths),
        )


def _flat(ranges: list[tuple[int, int]]) -> Tensor:
    parts = [np.arange(start, start + count) for start, count in ranges]
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.int64))


def page_order(pages: Pages, seed: int) -> NDArray[np.int64]:
    """Training pages in a seed's order."""
    return np.random.default_rng((seed, 2)).permutation(pages.of_part("train"))


def training_order(
    pages: Pages, size: int, steps: int, batch: int, seed: int
) -> Iterator[list[Question]]:
    """Questions of each step: the first ``size`` pages of the seed's order, again and again.

    Half are to be read aloud, half are asked about; another draw each time a page comes up.
    """
    rng = np.random.default_rng((seed, 1))
    own = page_order(pages, seed)[:size]
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < batch:
            queue += rng.permutation(own).tolist()
        now, queue = queue[:batch], queue[batch:]
        yield [asked(pages, page, rng, read=bool(rng.random() < 0.5)) for page in now]


def asked(pages: Pages, page: int, rng: np.random.Generator, *, read: bool) -> Question:
    """One of a page's questions, or to read it."""
    meta = pages.meta[page]
    if read:
        return Question(page, READ, meta["text"])
    question, answer = meta["facts"][int(rng.integers(len(meta["facts"])))]
    return Question(page, question, answer)


def unseen(pages: Pages, seed: int, count: int, *, read: bool) -> list[Question]:
    """Questions about the last training pages of a seed's order, to choose a learning rate by."""
    rng = np.random.default_rng(6)
    return [asked(pages, page, rng, read=read) for page in page_order(pages, seed)[-count:]]


def several(pages: Pages, count: int) -> list[Question]:
    """A question about one of ``count`` held-out pages in one prompt, wherever it stands."""
    rng = np.random.default_rng((5, count))
    own = pages.of_part("test")
    found = []
    for page in own[:SEVERAL]:
        others = rng.choice([other for other in own if other != page], count - 1, replace=False)
        among = [int(other) for other in others]
        at = int(rng.integers(count))
        among.insert(at, page)
        one = asked(pages, page, rng, read=False)
        question = f"Page {at + 1}: {one.question}"
        found.append(Question(page, question, one.answer, tuple(among)))
    return found


def held_out(pages: Pages, part: str, *, read: bool) -> list[Question]:
    """A question about each page of a part, the same ones for everybody."""
    rng = np.random.default_rng(5)
    return [asked(pages, page, rng, read=read) for page in pages.of_part(part)]
