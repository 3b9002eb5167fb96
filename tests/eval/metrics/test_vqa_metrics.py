"""TextVQA accuracy: people, and the normalisation."""

from __future__ import annotations

import pytest

from alignvlm.errors import DataError
from alignvlm.eval.metrics import textvqa_accuracy
from alignvlm.eval.metrics.vqa import CONTRACTIONS, textvqa_normalize, vqa_normalize


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_leave_one_out(agreeing, score):
    answers = ("blue",) * agreeing + tuple(f"other {i}" for i in range(10 - agreeing))
    assert textvqa_accuracy("blue", answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("1,000", "1000"),  # a comma between digits removes all marks
        ("1,000-2", "10002"),
        ("a-b", "b"),  # a mark inside a word becomes a space, and "a" is an article
        ("well - known", "well known"),
        ("x/y", "x y"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("5.", "5"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("", ""),
        ("the", ""),
        ("￥５", "￥５"),
        ("“hi”", "“hi”"),
        ("." * 40, "." * 8),  # only 32 periods go
    ],
)
def test_vqa_normalize(text, plain):
    assert vqa_normalize(text) == plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1,000", "1000"), ("dog's", "dog 's"), ("What?", "what"), ("A, b", "b"), ("a\tb", "b")],
)
def test_textvqa_normalize(text, plain):
    assert textvqa_normalize(text) == plain


def test_contractions_are_those_of_the_official_table():
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ows'at"] == CONTRACTIONS["'ow'sat"]
    assert "lets" not in CONTRACTIONS and "im" not in CONTRACTIONS


def test_empty():
    assert textvqa_accuracy("", ("x",) * 10) == 0.0
    assert textvqa_accuracy("x", ("x",)) == 0.0  # nobody else said it
    with pytest.raises(DataError):
        textvqa_accuracy("x", ())
