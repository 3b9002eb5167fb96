"""Field F1 of DeepForm, Kleister Charity and SROIE."""

from __future__ import annotations

import pytest

from alignvlm.eval.metrics import METRICS, field_verdict, sroie_verdict

HIT, WRONG, MISSED, EXTRA, NOTHING = (1, 0, 0), (0, 1, 1), (0, 0, 1), (0, 1, 0), (0, 0, 0)


def counts(verdict):
    return verdict["tp"], verdict["fp"], verdict["fn"]


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Acme Inc", ("ACME INC",), HIT),
        (" Acme Inc\n", ("Acme Inc",), HIT),
        ("Acme", ("Acme Inc", "acme"), HIT),  # a variant
        ("Acme  Inc", ("Acme Inc",), WRONG),
        ("Acme Inc.", ("Acme Inc",), WRONG),
        ("$1,000.00", ("1000.00",), WRONG),
        ("strasse", ("Straße",), HIT),  # upper case, as DUE compares
        ("", ("x",), MISSED),
        ("None", ("x",), MISSED),
        ("none", ("x",), MISSED),
        ("None", ("None",), HIT),
        ("x", (), EXTRA),
        ("", (), NOTHING),
        ("None", (), NOTHING),
    ],
)
def test_field_verdict(prediction, answers, expected):
    assert counts(field_verdict(prediction, answers)) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        (" 9.00", ("9.00",), HIT),
        ("NO 1,  JALAN\nA", ("NO 1, JALAN A",), HIT),
        ("9.0", ("9.00",), WRONG),
        ("sdn bhd", ("SDN BHD",), WRONG),
        ("", ("9.00",), MISSED),
        ("x", (), EXTRA),
        ("９", ("9",), WRONG),
    ],
)
def test_sroie_verdict(prediction, answers, expected):
    assert counts(sroie_verdict(prediction, answers)) == expected


def test_f1_is_of_the_summed_counts():
    verdicts = [field_verdict("a", ("a",)), field_verdict("b", ("c",)), field_verdict("", ("d",))]
    assert METRICS["field_f1"].aggregate(verdicts) == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert METRICS["field_f1"].aggregate(verdicts[1:]) == 0.0
    assert METRICS["sroie_f1"].aggregate([sroie_verdict("a", ("a",))]) == 1.0
