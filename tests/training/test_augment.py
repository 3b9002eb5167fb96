import random

import pytest
import torch
from training.smol.augment import another, other_digits, without

from alignvlm.reader.characters import Characters


def page_of(*texts):
    """Rows in which every digit may be a 7 or a letter instead."""
    rows = []
    for text in texts:
        options = tuple("7O" if char.isdigit() else "" for char in text)
        rows.append(Characters(text, options, torch.zeros(len(text), 2)))
    return rows


def texts(page):
    return [row.text for row in page]


RECEIPT = (
    "BLUE HARBOUR TRADING",
    "12 LONG LANE, KAJANG",
    "DATE 14/03/2018",
    "TOTAL 25.90",
    "CASH 25.90",
)
ANSWERS = {
    "company": "BLUE HARBOUR TRADING", "address": "12 LONG LANE, KAJANG", "date": "14/03/2018",
    "total": "25.90",
}  # fmt: skip


def test_digits_change_alike_on_the_page_and_in_its_answers():
    page, answers = other_digits(page_of(*RECEIPT), ANSWERS, "date", random.Random(1))
    rows = texts(page)
    assert rows[2] == RECEIPT[2] and answers["date"] == ANSWERS["date"]
    assert answers["total"] != "25.90" and answers["company"] == ANSWERS["company"]
    assert rows[3] == f"TOTAL {answers['total']}" and rows[4] == f"CASH {answers['total']}"
    assert rows[1] == answers["address"]
    # what a digit may be instead changes with it, and stays another character than it
    places = [n for n, char in enumerate(rows[3]) if char.isdigit()]
    same = {RECEIPT[3][n] == "7" for n in places}
    assert same == {False}
    assert all(page[3].options[n][0] not in rows[3][n] for n in places)
    assert len({page[3].options[n] for n in places}) == 1 and page[3].options[places[0]][1] == "O"


def test_digits_stay_where_the_date_shares_its_row():
    rows = (*RECEIPT[:2], "14/03/2018 TOTAL 25.90")
    page, answers = other_digits(page_of(*rows), ANSWERS, "date", random.Random(1))
    assert texts(page) == list(rows) and answers == ANSWERS


def test_another_shops_name_takes_the_place():
    donor = page_of("RECEIPT", "GREEN HILL", "MINIMART SDN BHD", "TOTAL 1.00")
    page = another(page_of(*RECEIPT), ANSWERS["company"], donor, "GREEN HILL MINIMART SDN BHD")
    assert texts(page) == ["GREEN HILL", "MINIMART SDN BHD", *RECEIPT[1:]]


@pytest.mark.parametrize("row", ["BLUE HARBOUR TRADING TEL 555", "something else"])
def test_a_row_that_holds_more_or_nothing_is_left(row):
    donor = page_of("GREEN HILL MINIMART")
    found = another(page_of(row, *RECEIPT[1:]), ANSWERS["company"], donor, "GREEN HILL MINIMART")
    assert found is None


def test_a_field_is_taken_away_whole():
    page = without(page_of(*RECEIPT), ANSWERS, "total")
    assert texts(page) == list(RECEIPT[:3])
    both = page_of(*RECEIPT[:2], "14/03/2018 TOTAL 25.90")
    assert without(both, ANSWERS, "total") is None
