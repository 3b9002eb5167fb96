"""Where the words of a page may be parted, joined or said in capitals, so that no letter is made up
and no number becomes another one."""

from __future__ import annotations

import re

from .values import CURRENCY

_OPEN, _CLOSE = "([{<\"'“‘«*#", ")]}>\"'”’»*.,:;!?"
_PARTS = re.compile(r"[:;=|(\[]")
_LETTERS = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]?[^\W\d_A-Z]+")
_DATE = re.compile(
    r"\d{1,2}([-/.])\d{1,2}\1(?:\d{4}|\d{2})|(?:19|20)\d\d([-/.]?)(?:0\d|1[0-2])\2[0-3]\d"
)
_TIME = re.compile(r"[-/T](?:\d{1,2}[:.]?\d{2}|$)")


def word_bounds(word: str) -> tuple[list[int], list[int]]:
    """Where a span may begin and end in a word without spaces, as offsets.

    At its ends; behind opening and before closing punctuation; at ``: ; = |`` and brackets; behind
    a currency before an amount; between the day and the time of a whole date. Never where it would
    part a number from its digits or its sign.

    Example:
        >>> word_bounds("Total:$31.48,")
        ([0, 6, 7], [5, 12, 13])
    """
    places = range(len(word) + 1)
    starts = [at for at in places if word[at:] and _may_begin(word[:at], word[at:])]
    ends = [at for at in places if at and _may_end(word[:at], word[at:])]
    return starts, ends


def _may_begin(head: str, tail: str) -> bool:
    if tail[0] in "([":
        return True
    if head[-2:-1].isdigit() and tail[0].isdigit() and head[-1] not in "([":
        return False  # 10:30
    own = _PARTS.split(head)[-1].strip(_OPEN)
    return not own or (CURRENCY.fullmatch(own) is not None and tail[0] in "0123456789.-+")


def _may_end(head: str, tail: str) -> bool:
    if not tail:
        return True
    if tail[0] in "([" and head.strip(_OPEN):
        return True
    if _TIME.match(tail) and _DATE.fullmatch(_PARTS.split(head)[-1].strip(_OPEN)):
        return True
    if not head.strip(_OPEN) or (head[-1].isdigit() and tail[1:2].isdigit()):
        return False
    return not tail.strip(_CLOSE) or _PARTS.match(tail) is not None


def word_gaps(word: str) -> list[int]:
    """Where a space may be said within a word: the page has none there, or it was not read.

    Between letters, three or more on each side, between a letter and a digit, and behind marks such
    as ``, ; )``; never within a number, a date or a time.

    Example:
        >>> word_gaps("13,JLN"), word_gaps("1,234.50")
        ([3], [])
    """
    return [at for at in range(1, len(word)) if _may_part(word[:at], word[at:])]


def _may_part(head: str, tail: str) -> bool:
    left, right = head[-1], tail[0]
    if left in ",;:" and head[-2:-1].isdigit() and right.isdigit():
        # SS21/39,47400 are two numbers; 1,234 and 0,12345 are one
        several = re.search(r"[^\d.,]", head) is not None
        return left == "," and several and re.match(r"\d{4}", tail) is not None
    if left == ".":
        return right.isalpha() or (right.isdigit() and head[-2:-1].isalpha())
    if left in ",;:)&":
        return True
    if left.isalpha() and right.isalpha():
        several = re.search(r"[^\W\d_]{3}$", head) and re.match(r"[^\W\d_]{3}", tail)
        return several is not None
    return (left.isalpha() and right.isdigit()) or (left.isdigit() and right.isalpha())


def may_join(left: str, right: str) -> bool:
    """Whether the space between two characters of a row may be left out, where it is narrow: never
    between two digits, nor between a sign and a number.

    Example:
        >>> may_join("9", "."), may_join("1", "7"), may_join("-", "5")
        (True, False, False)
    """
    signs = (left in "+-" and right.isdigit()) or (left.isdigit() and right in "+-")
    return not signs and not (left.isdigit() and right.isdigit())


def may_be_capitals(word: str) -> list[list[int]]:
    """The small letters of a word that may be said as capitals, run by run, all of a run or none.

    Of words in small letters and capitalised ones, also several without a space; a code that mixes
    both keeps them, and so does a single letter beside a digit.

    Example:
        >>> may_be_capitals("Lot3rd"), may_be_capitals("aB3x")
        ([[1, 2], [4, 5]], [])
    """
    found = []
    numbered = any(char.isdigit() for char in word)
    for run in _LETTERS.finditer(word):
        parts = _CAMEL.findall(run[0])
        usual = "".join(parts) == run[0] and all(len(part) > 1 for part in parts)
        if usual or (len(run[0]) == 1 and not numbered):
            found.append([at for at in range(*run.span()) if word[at].islower()])
    return [run for run in found if run]
