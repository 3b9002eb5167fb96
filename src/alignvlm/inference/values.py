"""Values from words: numbers and dates as documents write them; no guess at what is ambiguous."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import IntEnum
from typing import Any, Literal, NamedTuple

Kind = Literal["text", "number", "integer", "date"]
CURRENCIES = ("RM", "MYR", "USD", "EUR", "GBP", "CHF", "SGD", "AUD", "CAD", "INR", "IDR", "JPY",
              "CNY", "Rs", "Rp", "kr")  # fmt: skip
"""Letters beside an amount that are no part of it."""
_SIGNS = "".join(c for c in map(chr, range(0x20D0)) if unicodedata.category(c) == "Sc")
CURRENCY = re.compile(f"{'|'.join(CURRENCIES)}|[A-Z]{{0,3}}[{_SIGNS}]")
"""What names a currency: ``RM``, ``$``, ``US$``."""
PIVOT = 69
"""Years of two digits from here on are of the last century, as in POSIX."""
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september",
           "october", "november", "december")  # fmt: skip
_DAYS = re.compile(
    r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|satur|sat|sun)(?:day)?[.,]*(?:\s+|(?=\d))", re.I
)
_TIME = re.compile(r"(?:,|\s*at|T)?\s*(?<!\d)\d{1,2}:\d{2}(?::\d{2})?\s*(?:[ap]\.?m\.?)?$", re.I)


@dataclass(frozen=True)
class Spelling:
    """How a document writes what could be read in two ways; ``None``: it is said, not guessed.

    Attributes:
        day_first: 03/04/2018 is in April.
        decimal: what parts 1.234 is: ``.`` (a bit more than one) or ``,`` (more than a thousand).
    """

    day_first: bool | None = None
    decimal: Literal[".", ","] | None = None


class Parsed(NamedTuple):
    """A value, or ``None`` with the reason why there is none."""

    value: Any
    note: str | None = None


def parse(text: str, kind: Kind, spelling: Spelling | None = None) -> Parsed:
    """The value of some words.

    Args:
        text: an answer's words; empty words have no value and no note.
        kind: ``text`` is the words themselves, ``number`` a ``Decimal``, ``integer`` an ``int``,
            ``date`` a ``datetime.date``.
    """
    text = " ".join(text.split())
    if not text or kind == "text":
        return Parsed(text or None)
    return _PARSERS[kind](text, spelling or Spelling())


_UNIT = rf"(?:(?:{'|'.join(CURRENCIES)})\.?|%)"
_NUMBER = re.compile(
    rf"(?P<open>\()?\s*(?P<lead>[-+])?\s*(?:{_UNIT}\s*)?(?P<sign>[-+])?\s*"
    rf"(?P<number>\d[\d., ']*\d|\d|[.,]\d+)\s*(?:{_UNIT}\s*)?(?P<trail>-)?\s*(?P<close>\))?",
)


def parse_number(text: str, spelling: Spelling | None = None) -> Parsed:
    """A number with or without a currency, thousands apart, a sign before or behind it or in
    brackets for a negative one; of a percentage the number before the sign.

    1,234 and 1.234 are more than a thousand or a bit more than one: not guessed.
    """
    match = _NUMBER.fullmatch(_plain(text))
    wrong = Parsed(None, f"{text!r} is no number")
    if match is None or bool(match["open"]) != bool(match["close"]):
        return wrong
    signs = [sign for sign in (match["open"], match["lead"], match["sign"], match["trail"]) if sign]
    found = _amounts(match["number"])
    if len(signs) > 1 or not found:
        return wrong
    decimal = (spelling or Spelling()).decimal
    if len(found) > 1 and decimal is None:
        return Parsed(None, f"{text!r}: {found[0]} or {found[1]}? (--decimal . or , says it)")
    whole = len(found) > 1 and (decimal or "") not in match["number"]
    value = found[1] if whole else found[0]
    return Parsed(-value if signs and signs != ["+"] else value)


def _amounts(number: str) -> list[Decimal]:
    """What digits with separators may be: nothing, one number, or a decimal and a whole one."""
    *groups, last = re.split(r"[., ']", number)
    marks = re.findall(r"[., ']", number)
    if not marks:
        return [Decimal(number)]
    point, before = marks[-1], marks[:-1]
    thousands = [_whole([*groups, last])] if len(set(marks)) == 1 else []
    decimals = []
    if point in ".," and point not in before and last and len(set(before)) < 2:
        decimals = [_whole(groups) if before else int(groups[0] or 0)]
    found = [Decimal(f"{whole}.{last}") for whole in decimals if whole is not None]
    return found + [Decimal(whole) for whole in thousands if whole is not None]


def _whole(groups: list[str]) -> int | None:
    """Groups of three digits, but for the first; 0 is no group of its own."""
    first, *others = groups
    if not 0 < len(first) <= 3 or first.startswith("0") or any(len(g) != 3 for g in others):
        return None
    return int("".join(groups))


def parse_integer(text: str, spelling: Spelling | None = None) -> Parsed:
    """A whole number; see :func:`parse_number`."""
    found = parse_number(text, spelling)
    if found.value is None:
        return found
    if found.value != found.value.to_integral_value():
        return Parsed(None, f"{text!r} is no whole number")
    return Parsed(int(found.value))


def parse_date(text: str, spelling: Spelling | None = None) -> Parsed:
    """A date, year first or last, the month as a number or an English name; a weekday before it and
    a time behind it are left out. 03/04/2018 is not guessed."""
    bare = _bare_date(text)
    found = _named_month(bare) or _numbers_alone(bare, spelling or Spelling())
    if len(found) == 1:
        return Parsed(found.pop())
    if found:
        first, second = sorted(found)
        return Parsed(None, f"{text!r}: {first} or {second}? (--dates dmy or mdy says it)")
    return Parsed(None, f"{text!r} is no date")


class Likeness(IntEnum):
    """How much words look like a value of some kind."""

    NO = 0
    HOLDS = 1
    """Something in them looks like one."""
    MAY_BE = 2
    IS = 3


_SURE_DATE = re.compile(
    r"\d{1,4}\s*([-/])\s*\d{1,2}\s*\1\s*\d{2,4}"
    r"|\d{1,2}\.\d{1,2}\.\d{4}|\d{4}\.\d{1,2}\.\d{1,2}|\d\d\.\d\d\.\d\d"
    r"|\d{1,2}\D{3,}\d{2}|(?=.*\d{4}).*[A-Za-z]{3}.*"
)
"""Of what parses as a date: not three numbers with spaces, 1.2.19 or JUN 6.50."""
_LIKE_DATE = re.compile(r"\d{1,2}\W{0,2}(?:de )?[^\W\d_]{3,10}\W{0,2}(?:de )?(?:19|20)\d{2}")
_NAMES = "|".join(month[:3] for month in _MONTHS)
_PART, _TWO = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0[1-9]|[12]\d|3[01])"
"""A day or a month, and one of two digits."""
_HOLDS_DATE = re.compile(
    rf"(?<![\d.])(?:\d{{4}}\s*([-/.])\s*{_PART}\s*\1\s*{_PART}(?!\.?\d)"
    rf"|{_PART}\s*([-/.])\s*{_PART}\s*\2\s*(?:\d{{4}}|\d\d)(?!\.?\d))"
    rf"|(?<!\d){_PART}:{_PART}:(?:19|20)\d\d(?!\d)|(?:19|20)\d\d\s?年"
    rf"|(?<!\d)(?:(?:19|20)\d\d{_TWO}{_TWO}|{_TWO}{_TWO}(?:19|20)\d\d)(?!\d)"
    r"|[^\W\d_]{3,}\W{0,3}(?:de )?(?:19|20)\d\d(?!\d)"
    rf"|\d\W{{0,3}}(?:{_NAMES})|(?:{_NAMES})\W{{0,3}}\d",
    re.I,
)


def date_likeness(text: str) -> Likeness:
    """How much words look like a date, whether or not it can be read in two ways.

    >>> [date_likeness(text).name for text in ("03/04/2018", "15. März 2018", "2018年3月5日")]
    ['IS', 'MAY_BE', 'HOLDS']
    >>> [date_likeness(text).name for text in ("12 48 20", "03-6057 1377", "RM 8.50")]
    ['NO', 'NO', 'NO']
    """
    bare = _bare_date(text)
    if _named_month(bare) or _numbers_alone(bare, Spelling()):
        return Likeness.IS if _SURE_DATE.fullmatch(bare) else Likeness.MAY_BE
    if _LIKE_DATE.fullmatch(bare):
        return Likeness.MAY_BE
    return Likeness.HOLDS if _HOLDS_DATE.search(bare) else Likeness.NO


def _bare_date(text: str) -> str:
    """Without weekday and time."""
    return _TIME.sub("", _DAYS.sub("", _plain(text), count=1)).strip(" ,.")


def _plain(text: str) -> str:
    """Compatible characters folded, currency signs and the page's punctuation around it dropped."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2019", "'")
    text = re.sub(rf"\b[A-Z]{{1,3}}[{_SIGNS}]|[{_SIGNS}]", " ", text)
    return " ".join(text.split()).strip(" :;,*#")


def _named_month(text: str) -> set[date]:
    name = r"(?P<month>[A-Za-z]{3,9})\.?"
    day, year, gap = (
        r"(?P<day>\d{1,2})(?:\s*(?:st|nd|rd|th))?",
        r"'?(?P<year>\d{4}|\d{2})",
        r"[\s,./-]*",
    )
    for pattern in (
        rf"{day}{gap}(?:of\s*)?{name}{gap}{year}",
        f"{name}{gap}{day}[\\s,./-]+{year}",
        rf"(?P<year>\d{{4}}){gap}{name}{gap}{day}",
    ):
        match = re.fullmatch(pattern, text, re.I)
        if match and (month := _month(match["month"])):
            return _dates([(_year(match["year"]), month, int(match["day"]))])
    return set()


def _month(name: str) -> int | None:
    name = name.lower()
    if name == "sept":
        return 9
    return next((n for n, own in enumerate(_MONTHS, start=1) if name in (own, own[:3])), None)


def _numbers_alone(text: str, spelling: Spelling) -> set[date]:
    if match := re.fullmatch(r"(\d{4})(\d{2})(\d{2})", text):
        return _dates([tuple(map(int, match.groups()))])
    match = re.fullmatch(r"(\d{4}|\d{1,2})\s*([-/. ])\s*(\d{1,2})\s*\2\s*(\d{4}|\d{1,2})", text)
    if match is None or len(match[1]) == len(match[4]) == 4:
        return set()
    a, b, c = match[1], int(match[3]), match[4]
    if len(a) == 4:
        return _dates([(int(a), b, int(c))])
    if len(c) == 1:
        return set()
    year, first = _year(c), int(a)
    dmy, mdy = (year, b, first), (year, first, b)
    if spelling.day_first is not None:
        return _dates([dmy if spelling.day_first else mdy])
    found = _dates([dmy, mdy])
    # 99/12/31: the year comes first where it cannot come last
    return found or (_dates([(_year(a), b, int(c))]) if len(a) == len(c) == 2 else set())


def _year(text: str) -> int:
    year = int(text)
    return year if len(text) == 4 else year + (1900 if year >= PIVOT else 2000)


def _dates(parts: list[Any]) -> set[date]:
    """Those that the calendar has."""
    found = set()
    for year, month, day in parts:
        try:
            found.add(date(year, month, day))
        except ValueError:
            continue
    return found


_PARSERS: dict[str, Callable[[str, Spelling], Parsed]] = {
    "number": parse_number,
    "integer": parse_integer,
    "date": parse_date,
}
