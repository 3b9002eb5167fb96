"""One number for what a model is worth on held-out documents: it chooses the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping

FLOOR = 0.001
"""The least a part counts, so that progress elsewhere shows in a model that cannot do one thing."""
FALL = 0.2, 0.05
"""A part has fallen when it lost more than this share of what it was, and more than this."""


def reading_part(text: tuple[float, float], blank: tuple[float, float]) -> float:
    """How well pages are read, 0..1: of all tokens that are there or are read where nothing is, the
    share that is read right (with one more of each, so that a model that reads nothing right yet
    still gets better by making up less).

    Most of a page is blank, so shares of text and of blank cells cannot be averaged: were one blank
    cell in twenty read as text, most of what the language model gets would be made up.

    Args:
        text: cells in which a token starts: read right, and all.
        blank: cells in which none starts: said to be blank, and all.
    """
    made_up = blank[1] - blank[0]
    return (text[0] + 1) / (text[1] + made_up + 1)


def combined(parts: Mapping[str, float], start: Mapping[str, float] | None = None) -> float:
    """The score of a model, 0..1: the geometric mean of its parts.

    A model that loses one of its abilities is worth little, however good it is at the others. So
    the mean is one that a small part pulls down; and where a part has fallen from where training
    started, the score is 0: no ability is paid for with another.

    Args:
        parts: by name, each 0..1 and higher is better; what is not a number counts as 0.
        start: the same parts of the model before training.

    Returns:
        0 without any part: nothing was measured.
    """
    if not parts:
        return 0.0
    values = {name: value if math.isfinite(value) else 0.0 for name, value in parts.items()}
    for name, before in (start or {}).items():
        lost = before - values.get(name, 0.0)
        if lost > FALL[0] * before and lost > FALL[1]:
            return 0.0
    logs = [math.log(min(max(value, FLOOR), 1.0)) for value in values.values()]
    return math.exp(math.fsum(logs) / len(logs))
