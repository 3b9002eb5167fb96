"""Yes or no: TabFact and POPE."""

from __future__ import annotations

import pytest

from alignvlm.errors import DataError
from alignvlm.eval.metrics import (
    METRICS,
    pope_verdict,
    read_pope,
    read_yes_no,
    tabfact_accuracy,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**YES**", True),
        ("Yes, it is not far", True),
        ("ｙｅｓ", None),
        ("True", True),
        ("1", True),
        ("0", False),
        ("No", False),
        ("no\n", False),
        ("false!", False),
        ("“No”", False),
        ("Refuted", False),
        ("The answer is yes.", True),
        ("The statement is false", False),
        ("The statement is not true", None),
        ("it isn’t true", None),
        ("it isn't correct", None),
        ("true or false", True),  # the first word decides
        ("is it true or false", None),
        ("none", None),
        ("eyes", None),
        ("10", None),
        ("", None),
        ("...", None),
    ],
)
def test_read_yes_no(text, value):
    assert read_yes_no(text) is value


def test_tabfact_accuracy():
    assert tabfact_accuracy("Yes, supported.", ("yes",)) == 1.0
    assert tabfact_accuracy("false", ("0",)) == 1.0
    assert tabfact_accuracy("no", ("yes",)) == 0.0
    assert tabfact_accuracy("perhaps", ("no",)) == tabfact_accuracy("", ("no",)) == 0.0
    with pytest.raises(DataError, match="maybe"):
        tabfact_accuracy("yes", ("maybe",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("No, there is none.", False),
        ("no", False),
        ("There is not a dog", False),
        ("Yes. There is no cat", True),  # only the first sentence
        ("NO", True),
        ("No!", True),
        ("no\n", True),
        ("nothing", True),
        ("", True),
    ],
)
def test_read_pope_follows_the_official_script(text, value):
    assert read_pope(text) is value


def test_pope_scores():
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "no")] * 4 + [("no", "yes")] * 2
    verdicts = [pope_verdict(prediction, (answer,)) for prediction, answer in pairs]
    score = {name: METRICS[f"pope_{name}"].aggregate(verdicts) for name in
             ("accuracy", "precision", "recall", "f1", "yes_ratio")}  # fmt: skip
    assert score == pytest.approx(
        {"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes_ratio": 0.4}
    )
    nothing = [pope_verdict("no", ("no",))]
    assert METRICS["pope_precision"].aggregate(nothing) == 0.0
    assert METRICS["pope_f1"].aggregate(nothing) == 0.0
