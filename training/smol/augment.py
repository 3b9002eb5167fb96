"""Receipts that nobody printed: other digits, another shop's name, a field that is not there.

A few hundred receipts are seen many times; what changes from time to time must be read, what stays
is learned by heart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from alignvlm.reader.characters import Characters

from .excerpt import holds, plain_text

Page = list[Characters]
DIGITS = "0123456789"


def other_digits(
    page: Page, answers: Mapping[str, str], keep: str, rng: random.Random
) -> tuple[Page, dict[str, str]]:
    """Each digit stands for another one, everywhere but in the rows that hold a field.

    Args:
        page: rows, with what each character may be instead.
        answers: of each field.
        keep: the field whose rows stay as they are, such as the date, which must remain one.

    Returns:
        the page and its answers; as they were if another field stands in one of those rows.
    """
    texts = [row.text for row in page]
    fixed = set(holds(texts, answers[keep])) if keep in answers else set()
    others = {name: answer for name, answer in answers.items() if name != keep}
    if any(fixed & set(holds(texts, answer)) for answer in others.values()):
        return page, dict(answers)
    table = str.maketrans(DIGITS, "".join(rng.sample(DIGITS, len(DIGITS))))
    rows = [row if n in fixed else _translated(row, table) for n, row in enumerate(page)]
    return rows, {name: a if name == keep else a.translate(table) for name, a in answers.items()}


def _translated(row: Characters, table: dict[int, int]) -> Characters:
    options = tuple(others.translate(table) for others in row.options)
    return Characters(row.text.translate(table), options, row.log_ratio)


def another(page: Page, answer: str, donor: Page, theirs: str) -> Page | None:
    """The page with a field's rows replaced by those of another page.

    Args:
        answer: what stands in the rows that go.
        donor: the other page.
        theirs: what stands in the rows that come.

    Returns:
        the new page; ``None`` if those rows hold anything else, or there are none.
    """
    gone, come = _own_rows(page, answer), _own_rows(donor, theirs)
    if not gone or not come:
        return None
    place = gone[0]
    before = [row for n, row in enumerate(page) if n < place]
    after = [row for n, row in enumerate(page) if n > place and n not in gone]
    return [*before, *(donor[n] for n in come), *after]


def _own_rows(page: Page, answer: str) -> list[int]:
    """Rows that hold an answer or parts of it; none if one of them holds anything else."""
    found = holds([row.text for row in page], answer)
    whole = plain_text(answer)
    return found if all(plain_text(page[n].text) in whole for n in found) else []


def without(page: Page, answers: Mapping[str, str], name: str) -> Page | None:
    """The page without the rows of a field; ``None`` if they hold another field, or all rows."""
    texts = [row.text for row in page]
    gone = set(holds(texts, answers[name]))
    others: Sequence[str] = [answer for other, answer in answers.items() if other != name]
    if not gone or any(gone & set(holds(texts, answer)) for answer in others):
        return None
    return [row for n, row in enumerate(page) if n not in gone] or None
