"""Denotation accuracy of WikiTableQuestions: sets of typed values.

Semantics of the official ``evaluator.py`` 1.0.2 (Pasupat & Liang 2015,
github.com/ppasupat/WikiTableQuestions): a string, number or date each; two values match if their
normalised texts are equal, or if both are numbers (within 1e-6) or dates (all fields) and agree.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from .metric import Answers, alternatives

SEPARATOR = "|"
"""Between the items of a predicted list."""
CANONICAL = "\t"
"""Between an answer item and its canonical value, where the task knows it."""

_QUOTES = str.maketrans("‘’´`“”", "''''\"\"")
_DASHES = str.maketrans("‐‑‒–—−", "------")
# Python 2 without re.UNICODE: a digit is 0-9
_CITATION = re.compile(r"((?<!^)\[[^\]]*\]|\[[0-9]+\]|[•♦†‡*#+])*$")
_DETAIL = re.compile(r"(?<!^)( \([^)]*\))*$")
_QUOTED = re.compile(r'^"([^"]*)"$')


class Value(NamedTuple):
    """A typed value: ``kind`` is "string", "number" or "date".

    ``content`` identifies it within its kind: normalised text, number, or (year, month, day) with
    -1 for what is unknown.
    """

    kind: str
    content: str | int | float | tuple[int, int, int]
    text: str

    def matches(self, other: Value) -> bool:
        """Whether the two denote the same."""
        if self.text == other.text:
            return True
        if self.kind != other.kind or self.kind == "string":
            return False
        if self.kind == "date":
            return self.content == other.content
        return _close(self.content, other.content)  # type: ignore[arg-type]


def denotation_accuracy(prediction: str, answers: Answers) -> float:
    """1.0 if the predicted set of values is the answer's set, else 0.0.

    Args:
        prediction: items separated by ``|``. "2001|May 5th" has two. An empty text has none.
        answers: the items of *one* list answer; all must be found and nothing else. An item may
            carry its canonical value after a tab ("12,467" tab "12467.0": column ``targetCanon``
            of the official tagged files, made with CoreNLP). Without it the item is a number or
            date only if it is written as one: "12467" then does not match "12,467".

    Raises:
        DataError: ``answers`` is empty.
    """
    items = [item.partition(CANONICAL) for item in alternatives(answers, "denotation_accuracy")]
    target = to_values([item[0] for item in items], [item[2] for item in items])
    found = to_values(prediction.split(SEPARATOR)) if prediction.strip() else []
    return float(same_denotation(target, found))


def same_denotation(target: Sequence[Value], found: Sequence[Value]) -> bool:
    """Whether the sets have one size and every target value matches a found one."""
    if len(target) != len(found):
        return False
    return all(any(value.matches(other) for other in found) for value in target)


def to_values(items: Sequence[str], canonical: Sequence[str] | None = None) -> list[Value]:
    """Return the distinct values of ``items``; of equal ones the first stays.

    Numbers are equal here when they are identical, not when they are within 1e-6.
    """
    values: dict[tuple[str, object], Value] = {}
    for item, canon in zip(items, canonical or [""] * len(items), strict=True):
        value = to_value(item, canon)
        values.setdefault((value.kind, value.content), value)
    return list(values.values())


def to_value(item: str, canonical: str = "") -> Value:
    """Read the canonical value, or else the item itself, as a number, a date or a string."""
    source, text = canonical or item, normalize(item)
    number = _number(source)
    if number is None:
        date = _date(source)
        if date is None:
            return Value("string", text, text)
        if date[1:] != (-1, -1):
            return Value("date", date, text)
        number = date[0]  # only a year
    if isinstance(number, float) and abs(number - round(number)) < 1e-6:
        number = int(number)
    return Value("number", number, text)


def normalize(text: str) -> str:
    """Normalise a text: diacritics, quotes, dashes, citations, details, final period, case."""
    text = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", text)
        if unicodedata.category(letter) != "Mn"
    )
    text = text.translate(_QUOTES).translate(_DASHES)
    before = None
    while text != before:
        before = text
        text = _CITATION.sub("", text.strip())
        text = _DETAIL.sub("", text.strip())
        text = _QUOTED.sub(r"\1", text.strip())
    return re.sub(r"\s+", " ", text.removesuffix(".")).lower().strip()


def _close(a: float, b: float) -> bool:
    try:
        return abs(a - b) < 1e-6
    except OverflowError:  # an int beyond the floats minus a float
        return False


def _number(text: str) -> int | float | None:
    if "_" in text:  # digits grouped by "_" are newer than the official evaluator's Python 2
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _date(text: str) -> tuple[int, int, int] | None:
    parts = text.lower().split("-")
    if len(parts) != 3 or "_" in text:
        return None
    try:
        year = -1 if parts[0] in ("xx", "xxxx") else int(parts[0])
        month, day = (-1 if part == "xx" else int(part) for part in parts[1:])
    except ValueError:
        return None
    if year == month == day == -1:
        return None
    if not (month == -1 or 1 <= month <= 12) or not (day == -1 or 1 <= day <= 31):
        return None
    return year, month, day
