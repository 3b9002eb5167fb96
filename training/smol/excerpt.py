"""Rows of text from words, where an answer stands in them, and long pages made shorter."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(?:20)?(\d\d)\b")


def rows_of(words: Iterable[Any]) -> list[str]:
    """Rows of text across a page: words whose middles are near each other, left to right.

    Args:
        words: with ``text`` and ``box``, as attributes or keys.
    """
    found = []
    for word in words:
        text, box = (word["text"], word["box"]) if isinstance(word, dict) else (word.text, word.box)
        if text.strip():
            found.append(((box[1] + box[3]) / 2, box[3] - box[1], box[0], text))
    found.sort(key=lambda w: w[0])
    rows: list[list[tuple[float, float, float, str]]] = []
    for word in found:
        if rows:
            middle = sum(w[0] for w in rows[-1]) / len(rows[-1])
            if word[0] - middle < 0.5 * min(word[1], rows[-1][0][1]):
                rows[-1].append(word)
                continue
        rows.append([word])
    return [" ".join(w[3] for w in sorted(row, key=lambda w: w[2])) for row in rows]


def holds(rows: Sequence[str], answer: str) -> list[int]:
    """Numbers of the rows that hold an answer, or a part of it that goes over several rows."""
    date = _DATE.fullmatch(answer.strip())
    if date:
        wanted = tuple(int(part) for part in date.groups())
        return [
            number
            for number, row in enumerate(rows)
            if any(tuple(map(int, m)) == wanted for m in _DATE.findall(row))
        ]
    target = plain_text(answer)
    if not target:
        return []
    result = []
    for number, row in enumerate(rows):
        own = plain_text(row)
        if target in own or (len(own) >= 6 and own in target):
            result.append(number)
    return result


def plain_text(text: str) -> str:
    """What answers and rows are compared by: small letters, digits and points."""
    return re.sub(r"[^a-z0-9.]", "", text.lower()).removesuffix(".00").strip(".")


def shorten(rows: Sequence[str], keep: set[int], budget: int, rng: random.Random) -> list[int]:
    """Numbers of the rows that stay, so that they have about ``budget`` characters.

    Runs of rows go, from the longest stretches without a row to keep.
    """
    left = list(range(len(rows)))
    size = sum(len(row) + 1 for row in rows)
    while size > budget:
        runs: list[list[int]] = []
        for place, number in enumerate(left):
            if number in keep or number in (0, 1):
                continue
            if runs and runs[-1][-1] == place - 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        if not runs:
            break
        run = max(runs, key=len)
        count, gone = 0, 0
        start = rng.randrange(len(run))
        while start + count < len(run) and gone < size - budget:
            gone += len(rows[left[run[start + count]]]) + 1
            count += 1
        del left[run[start] : run[start] + count]
        size -= gone
    return left
