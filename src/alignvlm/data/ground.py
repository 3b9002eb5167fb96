"""Which token belongs under each visual token: targets for P_vocab from words with boxes.

The rule: a cell's target is the token that *starts* in it; every other cell is blank. A language
model reads such soft text almost as well as plain text, but not cells that mix two tokens. Narrow
characters ("." before a digit) start in the same cell now and then; the later token then moves to
the next free cell, at most ``MAX_SHIFT`` to the right, which keeps reading order and loses nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..documents.words import X_MIDDLE, Word
from ..errors import ConfigError
from ..model.config import AlignVLMConfig
from ..model.losses import IGNORE
from ..reader.cells import MAX_SHIFT
from ..tiling import Grid
from .harvest.unread import Box


class GroundTruth(NamedTuple):
    """Targets of one page.

    Attributes:
        targets: int64 ``[cell rows, cell cols]`` over the whole page; the blank id where nothing
            starts.
        shifted: tokens that moved right because their cell was taken.
        lost: tokens that found no free cell, or lie outside the page.
        tokens: tokens on the page.
    """

    targets: Tensor
    shifted: int
    lost: int
    tokens: int


def as_words(dicts: Sequence[dict[str, Any]]) -> list[Word]:
    """Words of a record as :class:`Word`.

    Where a record does not say, lines are found by vertical overlap and characters are spread
    evenly over the word's box.
    """
    words: list[Word] = []
    line, top, bottom = -1, 0.0, 0.0
    for entry in dicts:
        x0, y0, x1, y1 = entry["box"]
        text = entry["text"]
        if "line" in entry and entry["line"] is not None:
            line = entry["line"]
        else:
            same = y0 < (top + bottom) / 2 < y1 or top < (y0 + y1) / 2 < bottom
            if not words or not same or x0 < words[-1].box[0]:
                line += 1
        top, bottom = y0, y1
        edges = entry.get("char_x")
        if edges is None:
            edges = [x0 + (x1 - x0) * i / max(len(text), 1) for i in range(len(text))]
        words.append(Word(text, (x0, y0, x1, y1), line, tuple(edges), entry.get("middle")))
    return words


TALL = frozenset("bdfhklijtABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789()[]{}|/\\!?&%$#@£€'\"")
DEEP = frozenset("gjpqyQ,;()[]{}|/$@")
CAP, SMALL, DEPTH = 0.72, 0.53, 0.21
"""Ems above the baseline that tall and small characters reach, and below it that deep ones do."""


def word_middle(word: Word) -> float:
    """y in px of the middle of a word's small letters.

    Where it is not known it follows from the box of the ink and from which letters the word has:
    "on" and "Ogp" stand on the same line, but their boxes have other middles.
    """
    if word.middle is not None:
        return word.middle
    top, bottom = word.box[1], word.box[3]
    above = CAP if TALL & set(word.text) else SMALL
    below = DEPTH if DEEP & set(word.text) else 0.0
    em = (bottom - top) / (above + below)
    return bottom - (below + X_MIDDLE) * em


def line_middles(words: Sequence[Word]) -> dict[int, float]:
    """y in px of each line: the median over its words, longer ones counting more."""
    places: dict[int, list[float]] = {}
    for word in words:
        # a word of small signs ("-", "...") says nothing about the line's middle
        weight = 1 + 2 * sum(char.isalnum() for char in word.text)
        places.setdefault(word.line, []).extend([word_middle(word)] * weight)
    return {line: median(found) for line, found in places.items()}


def token_starts(words: Sequence[Word], tokenizer: Any) -> list[tuple[int, float, float]]:
    """Each token of the page's lines with the place of its first visible character.

    A line is tokenized as a whole and as if a space stood before it: every word carries the space
    before it, as the language model knows it from running text, and most words are one token. A
    token that is only a space sits in the gap where the space is; at the start of a line there is
    none.

    Returns:
        ``(token id, x, y)`` in px of the page image; y is the middle of the line.
    """
    starts = []
    lines: dict[int, list[Word]] = {}
    for word in words:
        lines.setdefault(word.line, []).append(word)
    middles = line_middles(words)
    for number, line in lines.items():
        text, places = _line_text(line)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (begin, end) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            visible = next((i for i in range(begin, end) if not text[i].isspace()), begin)
            if visible == 0:  # a bare space before the line
                continue
            starts.append((token, places[visible], middles[number]))
    return starts


def _line_text(line: list[Word]) -> tuple[str, list[float]]:
    """The line's text, a space before each word, and the left edge of each of its characters."""
    text, places, previous_right = "", list[float](), 0.0
    for word in line:
        # a space sits where the previous word ends
        text += " " + word.text
        places.append(previous_right)
        places += word.char_x[: len(word.text)]
        previous_right = word.box[2]
    return text, places


def ground(
    words: Sequence[Word],
    tokenizer: Any,
    *,
    cell_rows: int,
    cell_cols: int,
    cell_height: float,
    cell_width: float,
    scale: float = 1.0,
    blank_id: int,
) -> GroundTruth:
    """Targets of a page whose cells are ``cell_height x cell_width`` px of the scaled image.

    Args:
        words: with boxes in px of the page image.
        tokenizer: the language model's (fast).
        scale: from page px to scaled px, see :meth:`AlignVLMConfig.page_scale`.
        blank_id: target of cells in which nothing starts.
    """
    targets = torch.full((cell_rows, cell_cols), blank_id)
    taken: set[tuple[int, int]] = set()
    shifted = lost = 0
    starts = token_starts(words, tokenizer)
    for token, x, y in starts:
        # half a pixel inside, so that a glyph whose edge lies on a cell border counts right of it
        row, col = int(y * scale // cell_height), int((x * scale + 0.5) // cell_width)
        free = next((c for c in range(col, col + MAX_SHIFT + 1) if (row, c) not in taken), None)
        if free is None or not (0 <= row < cell_rows and 0 <= free < cell_cols):
            lost += 1
            continue
        shifted += free != col
        taken.add((row, free))
        targets[row, free] = token
    return GroundTruth(targets, shifted, lost, len(starts))


def page_targets(
    words: Sequence[Word],
    image_size: tuple[int, int],
    grid: Grid,
    config: AlignVLMConfig,
    tokenizer: Any,
    unread: Sequence[Box] = (),
) -> GroundTruth:
    """Targets of a page image of ``(width, height)`` px cut into ``grid``, for a model's cells.

    Args:
        unread: boxes of ink that no word explains; blank cells there are not scored.
    """
    layout = config.tile_token_grid
    assert layout is not None, "grounding needs a connector with a token grid"
    rows, cols = layout
    scale = config.page_scale(image_size, grid)
    assert config.blank_token_id is not None
    cell = config.tile_height / rows, config.tile_width / cols
    truth = ground(
        words,
        tokenizer,
        cell_rows=grid.rows * rows,
        cell_cols=grid.cols * cols,
        cell_height=cell[0],
        cell_width=cell[1],
        scale=scale,
        blank_id=config.blank_token_id,
    )
    ignore_unread(truth.targets, unread, cell, scale, config.blank_token_id)
    return truth


def ignore_unread(
    targets: Tensor,
    unread: Sequence[Box],
    cell: tuple[float, float],
    scale: float,
    blank_id: int,
) -> None:
    """Take blank cells with ink that no word explains out of the score, in place.

    Something may be written there that the words do not say, and its tokens may stand up to
    ``MAX_SHIFT`` cells further right.

    Args:
        targets: of a page, ``[cell rows, cell cols]``.
        unread: boxes in px of the page image.
        cell: height and width of a cell in px of the scaled page.
        scale: from page px to scaled px.
    """
    for x0, y0, x1, y1 in unread:
        top, left = int(y0 * scale // cell[0]), int(x0 * scale // cell[1])
        bottom, right = math.ceil(y1 * scale / cell[0]), math.ceil(x1 * scale / cell[1])
        here = targets[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0) + MAX_SHIFT]
        here[here == blank_id] = IGNORE


def tile_targets(targets: Tensor, grid: Grid) -> Tensor:
    """Page targets ``[cell rows, cell cols]`` as the model takes them: int64 ``[tiles, cells]``."""
    rows, cols = targets.shape[0] // grid.rows, targets.shape[1] // grid.cols
    tiles = targets.view(grid.rows, rows, grid.cols, cols).permute(0, 2, 1, 3)
    return tiles.reshape(grid.tiles, rows * cols)


def subsample_blanks(targets: Tensor, blank_id: int, keep: int, seed: int) -> Tensor:
    """Score at most ``keep`` of the blank cells, drawn by ``seed``; the others are ignored.

    Blank cells next to a scored text cell are no different here: the draw is uniform.
    """
    blanks = (targets.flatten() == blank_id).nonzero()[:, 0]
    if len(blanks) <= keep:
        return targets
    generator = torch.Generator().manual_seed(seed)
    dropped = blanks[torch.randperm(len(blanks), generator=generator)[keep:]]
    targets = targets.clone()
    targets.view(-1)[dropped] = IGNORE
    return targets


def frequent_tokens(
    pages: Sequence[Sequence[Word]], tokenizer: Any, keep: int, always: Sequence[int] = ()
) -> Tensor:
    """The ``keep`` token ids most frequent on some pages, for a pruned vocabulary.

    ``always`` and every token of one character (so that anything can be spelled) come first.

    Raises:
        ConfigError: ``keep`` cannot hold those.
    """
    single = [
        index for token, index in tokenizer.get_vocab().items()
        if len(token.lstrip("\u0120\u2581")) <= 1 and index not in tokenizer.all_special_ids
    ]  # fmt: skip
    chosen = dict.fromkeys([*always, *sorted(single)])
    usable = len(tokenizer) - len(set(tokenizer.all_special_ids) - set(chosen))
    if keep > usable:
        raise ConfigError(f"kept_tokens={keep} is more than the tokenizer's {usable} tokens")
    if len(chosen) > keep:
        raise ConfigError(f"kept_tokens={keep} cannot hold the {len(chosen)} one-character tokens")
    counts: Counter[int] = Counter()
    for words in pages:
        counts.update(token for token, _, _ in token_starts(words, tokenizer))
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    # the rest of the vocabulary by id: byte-pair merges are numbered by frequency
    for token in (*ranked, *range(len(tokenizer))):
        if len(chosen) >= keep:
            break
        if token not in tokenizer.all_special_ids:
            chosen.setdefault(token)
    return torch.tensor(sorted(chosen))
