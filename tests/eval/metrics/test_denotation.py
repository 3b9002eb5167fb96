"""WikiTableQuestions: typed values, sets, normalisation."""

from __future__ import annotations

import pytest

from alignvlm.errors import DataError
from alignvlm.eval.metrics import denotation_accuracy
from alignvlm.eval.metrics.denotation import normalize, to_value, to_values


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("2004", ("2004",), True),
        ("2004.0", ("2004",), True),
        ("2.004e3", ("2004",), True),
        ("２００４", ("2004",), True),
        ("2004.", ("2004",), True),
        ("2004.0000001", ("2004",), True),
        ("2004.00001", ("2004",), False),
        ("-5", ("-5.0",), True),
        ("−5", ("-5",), True),  # texts are equal after normalisation, the minus is no number
        ("−5.0", ("-5",), False),
        ("12467", ("12,467",), False),  # not without the canonical value
        ("12,467", ("12,467",), True),
        ("12467", ("12,467\t12467.0",), True),
        ("12,467", ("12,467\t12467.0",), True),
        ("10", ("10 years\t10.0",), True),
        ("1_000", ("1000",), False),
        ("nan", ("NaN",), True),
        ("inf", ("infinity",), False),
        ("1990-01-12", ("January 12, 1990\t1990-01-12",), True),
        ("xx-01-12", ("January 12\txx-01-12",), True),
        ("xxxx-1-12", ("January 12\txx-01-12",), True),
        ("xx-01-12", ("January 12, 1990\t1990-01-12",), False),  # all fields must agree
        ("2010-xx-xx", ("2010",), True),  # only a year is a number
        ("2010-13-01", ("2010-13-1",), False),  # no month 13: texts
        ("xx-xx-xx", ("xx-xx-xx",), True),
        ("Thailand|Bangkok", ("Bangkok", "Thailand"), True),
        ("Bangkok", ("Bangkok", "Thailand"), False),
        ("Bangkok|Thailand|Laos", ("Bangkok", "Thailand"), False),
        ("Bangkok|bangkok", ("Bangkok",), True),  # a set
        ("1|1.0", ("1",), True),
        ("3|3", ("3", "three"), False),
        ("José", ("Jose",), True),
        ("Jose\u0301", ("José",), True),
        ("‘a’ “b”", ("'a' \"b\"",), True),
        ("1990–91", ("1990-91",), True),
        ("Wolfe Tones (GAA)", ("wolfe  tones",), True),
        ("Bolt[3]", ("Bolt†",), True),
        ('"Song"', ("song",), True),
        ("U.S.", ("U.S",), True),
        ("", ("x",), False),
        ("", ("[1]",), False),  # an empty text has no items
        ("   ", ("",), False),
    ],
)
def test_denotation_accuracy(prediction, answers, right):
    assert denotation_accuracy(prediction, answers) == float(right)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  A \t B\n", "a b"),
        ("x[a] (b) [2]*", "x"),
        ("[note]", "[note]"),  # at the start only numbers are a citation
        ("[12]", ""),
        ("(all)", "(all)"),
        ('"a" "b"', '"a" "b"'),
        ("end..", "end."),  # one final period
        ("½", "1⁄2"),
        ("ﬁne", "fine"),
        ("Ｆｕｌｌ", "full"),
        ("İ", "i"),
    ],
)
def test_normalize(text, plain):
    assert normalize(text) == plain


def test_equal_values_are_one():
    assert [v.text for v in to_values(["1", "1.0", "one", "One"])] == ["1", "one"]
    assert to_value("5.0").content == 5
    assert to_value("5.5").kind == "number"
    assert to_value("1990-5-xx") == ("date", (1990, 5, -1), "1990-5-xx")
    assert to_value("9" * 400).matches(to_value("0.5")) is False


def test_no_answer_is_an_error():
    with pytest.raises(DataError):
        denotation_accuracy("x", ())
