"""Vision features of a page's characters: what the recogniser has before it names them."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignvlm.reader import ReaderModel
from alignvlm.reader.boxes import Boxes
from alignvlm.reader.crops import STEP, Page, batches, widths
from alignvlm.reader.networks import folded, line_logits

from .drawn import Drawn, Piece


@dataclass(frozen=True)
class Cells:
    """Cells of a page in reading order.

    Attributes:
        features: float32 ``[n, 120]``, the recogniser's after backbone and neck.
        places: float32 ``[n, 2]``, x and y from 0 to 1 of the page.
        targets: int64 ``[n]``, the token that starts in each cell, or the blank one.
    """

    features: NDArray[np.float32]
    places: NDArray[np.float32]
    targets: NDArray[np.int64]


class Encoder:
    """The frozen recogniser over lines whose places are known.

    A cell is a column in which the recogniser reads a character: of each run of columns that say
    the same one the surest. Columns that say CTC's blank are dropped, for every connector alike.

    Args:
        folder: a reader saved by transformers.
        tokenizer: the language model's.
    """

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        model = ReaderModel.from_pretrained(folder).float().eval()
        self.alphabet = model.config.alphabet
        self.network = folded(model.recogniser)
        self.tokenizer = tokenizer
        self.blank = blank_token(tokenizer)
        self._seen: list[Tensor] = []
        self.network.head.head.register_forward_pre_hook(
            lambda module, given: self._seen.append(given[0])
        )

    @torch.inference_mode()
    def __call__(self, page: Drawn) -> Cells:
        """Cells of a page."""
        pixels = torch.from_numpy(page.pixels.astype(np.float32) / 127.5 - 1).expand(3, -1, -1)
        boxes = _boxes(page.pieces)
        cut, width = Page(pixels.contiguous()), widths(boxes)
        found: dict[int, tuple[NDArray, NDArray, str]] = {}
        for index in batches(boxes):
            self._seen.clear()
            logits = line_logits(self.network, cut.cut(boxes.take(index)))
            best, kind = (t.numpy() for t in logits.max(-1))
            for place, i in enumerate(index):
                columns = peaks(best[place, : width[i] // STEP], kind[place, : width[i] // STEP])
                text = "".join(self.alphabet[kind[place, c] - 1] for c in columns)
                found[int(i)] = (self._seen[0][place, columns].numpy(), columns, text)
        return self._cells(page, [found[i] for i in range(len(page.pieces))], width)

    def _cells(self, page: Drawn, found: list, width: NDArray) -> Cells:
        high, wide = page.pixels.shape
        places, targets = [], []
        for piece, (_, columns, text), broad in zip(page.pieces, found, width):
            left, top, right, bottom = piece.box
            x = left + (columns + 0.5) * STEP / broad * (right - left)
            y = np.full(len(columns), (top + bottom) / 2)
            places.append(np.stack([x / wide, y / high], 1))
            targets.append(token_cells(piece.text, text, self.tokenizer, self.blank))
        return Cells(
            np.concatenate([features for features, _, _ in found]),
            np.concatenate(places).astype(np.float32),
            np.concatenate(targets),
        )


def _boxes(pieces: tuple[Piece, ...]) -> Boxes:
    """Boxes with the margin that the recogniser is used to."""
    box = np.array([piece.box for piece in pieces], np.float32)
    margin = np.array([[-3, 0, 3, 0]], np.float32)
    box = box + margin
    centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    return Boxes(centre, size, np.zeros(len(box), np.float32))


def peaks(best: NDArray, kind: NDArray) -> NDArray[np.int64]:
    """Of each run of columns with one character the surest.

    >>> peaks(np.array([1.0, 2.0, 5.0, 4.0]), np.array([7, 7, 0, 9]))
    array([1, 3])
    """
    edges = np.flatnonzero(np.diff(kind)) + 1
    starts, ends = np.append(0, edges), np.append(edges, len(kind))
    return np.array(
        [s + int(best[s:e].argmax()) for s, e in zip(starts, ends) if kind[s] != 0], np.int64
    )


def blank_token(tokenizer: Any) -> int:
    """The id of a space alone: "no token starts here"."""
    (blank,) = tokenizer.encode(" ", add_special_tokens=False)
    return blank


def token_cells(text: str, read: str, tokenizer: Any, blank: int) -> NDArray[np.int64]:
    """The token that starts in each cell of a line.

    Args:
        text: what stands there.
        read: a character for each cell, as read; used to find places, never to name tokens.
    """
    cell_of: dict[int, int] = {}
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, text, read, autojunk=False).get_opcodes():
        if kind in ("equal", "replace"):
            cell_of |= dict(zip(range(a0, a1), range(b0, b1)))
    targets = np.full(len(read), blank, np.int64)
    encoded = tokenizer(" " + text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        visible = next((i for i in range(begin, end) if i and not text[i - 1].isspace()), None)
        cell = None if visible is None else cell_of.get(visible - 1)
        if cell is not None:
            targets[cell] = token
    return targets
