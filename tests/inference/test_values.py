"""Numbers and dates of the usual spellings; what is ambiguous is said."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignvlm.inference.values import Spelling, parse

DATES = st.dates(date(1970, 1, 1), date(2068, 12, 31))
AMOUNTS = st.decimals(0, 10**9, places=2)


def value(text: str, kind, **spelling):
    return parse(text, kind, Spelling(**spelling)).value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("31.48", "31.48"), ("$31.48", "31.48"), ("RM 31.48", "31.48"), ("RM31.48", "31.48"),
        ("31,48 €", "31.48"), ("31.48 USD", "31.48"), ("US$ 5", "5"), ("0.125", "0.125"),
        (".50", "0.50"), ("-31.48", "-31.48"), ("$-5.00", "-5.00"), ("-$5.00", "-5.00"),
        ("\u22125", "-5"), ("31.48-", "-31.48"), ("(31.48)", "-31.48"), ("($31.48)", "-31.48"),
        ("+7", "7"), ("1,234.50", "1234.50"), ("1.234,50", "1234.50"), ("1 234,50", "1234.50"),
        ("1'234.50", "1234.50"), ("1’234.50", "1234.50"), ("1,234,567", "1234567"),
        ("1.234.567", "1234567"), ("12 000", "12000"), ("1234.567", "1234.567"), ("6%", "6"),
        ("１２", "12"),
    ],
)  # fmt: skip
def test_numbers(text, number):
    assert value(text, "number") == Decimal(number)


@pytest.mark.parametrize(
    "text",
    ["abc", "12a", "8.6M", "1,23,4", "1.2.3", "12/03", "--5", "(5", "-(5)", "1.234.56", "1,2 3",
     "12 00", "EUR", "5 - 3", "1,234.567,8", "31.48."],
)  # fmt: skip
def test_what_is_no_number_says_so(text):
    found = parse(text, "number")
    assert found.value is None
    assert "is no number" in (found.note or "")


def test_thousands_or_decimals_are_not_guessed():
    for text in ("1,234", "1.234", "$12,000", "-1.234"):
        found = parse(text, "number")
        assert found.value is None
        assert " or " in (found.note or "")
    assert value("1,234", "number", decimal=".") == 1234
    assert value("1.234", "number", decimal=".") == Decimal("1.234")
    assert value("1.234", "number", decimal=",") == 1234
    assert value("-1,234", "number", decimal=",") == Decimal("-1.234")


@given(
    AMOUNTS,
    st.sampled_from(["{}", "${}", "RM {}", "{} EUR"]),
    st.sampled_from([",.", ".,", " ,", "'."]),
)
def test_an_amount_comes_back_in_every_spelling(amount, around, marks):
    apart, point = marks
    whole, part = f"{amount:,.2f}".split(".")
    text = around.format(whole.replace(",", apart) + point + part)
    assert value(text, "number") == amount
    assert value(f"-{text}", "number") == -amount


def test_whole_numbers():
    assert value("12", "integer") == 12
    assert value("12.00", "integer") == 12
    assert parse("12.50", "integer").note == "'12.50' is no whole number"


@pytest.mark.parametrize(
    "text",
    ["2009-02-12", "2009/02/12", "20090212", "12-Feb-2009", "12 February 2009", "12FEB2009",
     "Feb 12, 2009", "February 12th, 2009", "12th of February 2009", "12. Feb. 2009", "12 Feb '09",
     "Thursday, 12 February 2009", "Thu 12 Feb 2009", "12-Feb-09", "2009 Feb 12",
     "12 Feb 2009 10:30", "12-Feb-2009 10:30:15 PM", "2009-02-12T10:30", ":12-Feb-2009"],
)  # fmt: skip
def test_dates(text):
    assert value(text, "date") == date(2009, 2, 12)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "31/02/2018", "2018-13-01", "12 Foo 2018", "12/2018", "1-2-3", "12:30", "99"],
)
def test_what_is_no_date_says_so(text):
    found = parse(text, "date")
    assert found.value is None
    assert found.note is None if not text else "is no date" in (found.note or "")


@given(
    DATES, st.sampled_from("/.-"), st.sampled_from(["%d{0}%m{0}%Y", "%m{0}%d{0}%Y", "%d{0}%m{0}%y"])
)
def test_day_and_month_are_never_guessed(day, mark, form):
    text = day.strftime(form.format(mark))
    found = parse(text, "date")
    clear = day.day > 12 or day.day == day.month
    assert found.value == (day if clear else None)
    assert clear or " or " in (found.note or "")
    first = form.startswith("%d")
    assert value(text, "date", day_first=first) == day


def test_years_of_two_digits():
    assert value("25/12/69", "date") == date(1969, 12, 25)
    assert value("25/12/68", "date") == date(2068, 12, 25)
    assert value("99/12/31", "date") == date(1999, 12, 31)


@given(DATES, st.sampled_from(["%Y-%m-%d", "%d %b %Y", "%B %d, %Y", "%d-%b-%y", "%Y%m%d"]))
def test_clear_dates_come_back(day, form):
    assert value(day.strftime(form), "date") == day


@given(st.text(max_size=20), st.sampled_from(["text", "number", "integer", "date"]))
def test_any_text_is_a_value_or_has_a_reason(text, kind):
    found = parse(text, kind)
    words = " ".join(text.split())
    assert (found.value is None) == (found.note is not None or not words)
