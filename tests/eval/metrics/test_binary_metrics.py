"""Yes or no: TabFact."""

from __future__ import annotations

import pytest

from alignvlm.errors import DataError
from alignvlm.eval.metrics import read_yes_no, tabfact_accuracy


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
