"""ANLS and relaxed accuracy, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvlm.errors import DataError
from alignvlm.eval.metrics import anls, relaxed_accuracy

texts = st.text(max_size=20)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Paris", ("paris",), 1.0),
        ("  the   CAT ", ("The cat",), 1.0),
        ("line\none", ("line one",), 1.0),
        ("kitten", ("sitting",), 1 - 3 / 7),
        ("abcd", ("abxy",), 0.5),  # the threshold itself is kept
        ("abc", ("axyz",), 0.0),
        ("pariz", ("london", "paris", "berlin"), 0.8),  # the closest alternative
        ("", ("",), 1.0),
        ("", ("a",), 0.0),
        ("a", ("",), 0.0),
        ("cafe\u0301", ("café",), 1 - 2 / 5),  # a combining mark is a letter of its own
        ("１２", ("12",), 0.0),  # full-width digits are other letters
        ("12.", ("12",), 1 - 1 / 3),
        ("“x”", ('"x"',), 0.0),  # 2 of 3 differ
        ("1–2", ("1-2",), 1 - 1 / 3),
        ("strasse", ("straße",), 1 - 2 / 7),  # upper("straße") has 7 letters
        ("a  b c", ("a b d",), 1 - 1 / 6),  # divided by the length with both spaces
    ],
)
def test_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


def test_anls_threshold_is_an_argument():
    assert anls("kitten", ("sitting",), threshold=0.6) == 0.0


@settings(deadline=None)
@given(texts, texts)
def test_anls_is_a_similarity(a, b):
    assert anls(a, (a,)) == 1.0
    assert 0.0 <= anls(a, (b,)) <= 1.0
    assert anls(a, (b,)) == anls(b, (a,))
    assert anls(a, (a, b)) == anls(a, (b, a)) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("104.9", "100", True),
        ("105", "100", True),  # the bound belongs to it
        ("105.1", "100", False),
        ("95", "100", True),
        ("94.9", "100", False),
        ("-100", "100", False),
        ("-98", "-100", True),
        ("50%", "50%", True),
        ("52%", "50%", True),
        ("50%", "0.5", True),  # a percent sign divides by 100
        ("50", "50%", False),
        ("50", "0.5", False),
        ("0", "0", True),
        ("0.0", "0", False),  # no relative error to zero: compared as text
        ("0.001", "0", False),
        ("1,000", "1000", False),  # thousands separators make a text
        ("1,000", "1,000", True),
        ("1,001", "1,000", False),
        ("$5", "5", False),
        ("5 kg", "5", False),
        ("1e3", "1000", True),
        ("１００", "100", True),  # full-width digits are digits
        ("−5", "-5", False),  # the minus sign is not
        ("5.", "5", True),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("café", "cafe\u0301", False),
        ("‘a’", "'a'", False),
        ("", "", True),
        ("", "5", False),
        ("%", "%", True),
        ("5", "", False),
        (" 5\n", "5", True),
        ("NaN", "nan", True),  # a word
        ("inf", "Inf", True),
        ("inf", "5", False),
        ("2015.", "2016", True),  # years too
    ],
)
def test_relaxed_accuracy(prediction, answer, right):
    assert relaxed_accuracy(prediction, (answer,)) == float(right)


def test_relaxed_accuracy_takes_the_best_alternative():
    assert relaxed_accuracy("7", ("seven", "7.1")) == 1.0
    assert relaxed_accuracy("7", ("seven", "8")) == 0.0
    assert relaxed_accuracy("108", ("100",), tolerance=0.1) == 1.0


@pytest.mark.parametrize("metric", [anls, relaxed_accuracy])
def test_nothing_to_compare_with_is_an_error(metric):
    with pytest.raises(DataError, match="no accepted answer"):
        metric("a", ())
