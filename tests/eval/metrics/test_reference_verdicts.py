"""Verdicts of other people's scorers, frozen.

Generated pairs, judged by the DocVQA scorer as lmms-eval has it (anls), pix2struct
(relaxed_accuracy), lmms-eval (textvqa_accuracy), the official WikiTableQuestions evaluator
(denotation_accuracy; a canonical value follows a tab), VLMEvalKit (tabfact_accuracy) and the DUE
evaluator (field_f1: tp, fp, fn).
Made by ``python -m benchmarks.crosscheck_metrics REPOSITORIES --golden 10``. Where we differ on
purpose is in docs/evaluation-metrics.md.
"""

from __future__ import annotations

import pytest

from alignvlm.eval.metrics import METRICS

ROWS = [
    ("anls", "couldnt've.", ("[1]", "couldnt've", "12,467"), 0.9090909090909091),
    ("anls", "josé maría", ("José María",), 1.0),
    ("anls", "the Not sure?", ("Not sure",), 0.6153846153846154),
    ("anls", ", ", ("1e3",), 0.0),
    ("anls", "2010-05-01\n", ("Straße",), 0.0),
    ("anls", "2010-05-01", ("2010-05-01",), 1.0),
    ("anls", "3, 3", ("1e3", "José María"), 0.0),
    ("anls", "2010-05-01", ("+5", "2010-05-01"), 1.0),
    ("anls", "Not sure", ("Not sure",), 1.0),
    ("anls", "the NaN", ("NaN", "line one two three"), 0.0),
    (
        "textvqa_accuracy",
        "dont kno0w",
        (
            "dont know",
            "dont know",
            "dont know",
            "dont know",
            "dont know",
            "dont know",
            "dont know",
            "dont know",
            "dont know",
            "dont know",
        ),
        0.0,
    ),
    (
        "textvqa_accuracy",
        "“quoted”",
        (
            "“quted”",
            "“quoted”",
            "42",
            "“quoted”",
            "“quoted”",
            "“quoted”",
            "2010-05-01",
            "“quoted”",
            "“QUOTED”",
            "“quoted”",
        ),
        1,
    ),
    (
        "textvqa_accuracy",
        "1E3",
        ("1e3", "1e3", "1e3", "1e3", "1e3", "1e3", "1e3", "1e3", "1e3", "1e3"),
        1,
    ),
    (
        "textvqa_accuracy",
        "12,4,7",
        (
            "12,467",
            "12,467",
            "12,467",
            "12,467",
            "12,467",
            "12,467",
            "12,467",
            "12,467",
            "12,467",
            "12,467",
        ),
        0.0,
    ),
    (
        "textvqa_accuracy",
        " yes ",
        (
            "yes",
            "yes",
            "yes",
            "yes?",
            "the Coca-Cola Company",
            " yes ",
            "Yes",
            "yes",
            "yes?",
            "the yes",
        ),
        1,
    ),
    (
        "textvqa_accuracy",
        "wat?",
        ("what?", "what?", "what?", "what?", "what?", "what?", "what?", "what?", "what?", "what?"),
        0.0,
    ),
    (
        "textvqa_accuracy",
        "the 12,967",
        (
            "the 12,467",
            "12,467",
            "12,467",
            "12,467",
            "12467",
            "12,967",
            "12,467?",
            "",
            "1990–91",
            "125467",
        ),
        0.3,
    ),
    (
        "textvqa_accuracy",
        "5.",
        ("5.", "5.", "5.?", "5., 5.", "5.", "5.", "5.", "5.", "5’.", "5."),
        1,
    ),
    (
        "textvqa_accuracy",
        "what?",
        ("what?", "what?", "what?", "what?", "what?", "what?", "what?", "what?", "what?", "what?"),
        1,
    ),
    (
        "textvqa_accuracy",
        "ocl–ock",
        (
            "ocl’ock",
            "oclock, oclock",
            "oclock",
            "OCLOCK",
            "oclock",
            "oclock, oclock",
            "oclock",
            "oclock",
            "oclock",
            "OCLOCK",
        ),
        0.0,
    ),
    ("tabfact_accuracy", "none not", ("no",), 0.0),
    ("tabfact_accuracy", "none a dog. ", ("no",), 0.0),
    ("tabfact_accuracy", "", ("yes",), 0.0),
    ("tabfact_accuracy", "a dog\n", ("yes",), 0.0),
    ("tabfact_accuracy", "not", ("yes",), 0.0),
    ("tabfact_accuracy", "YES sure", ("yes",), 1.0),
    ("tabfact_accuracy", "NO a dog false", ("no",), 1.0),
    ("tabfact_accuracy", "Yes.", ("yes",), 1.0),
    ("tabfact_accuracy", "No, it is", ("no",), 1.0),
    ("tabfact_accuracy", "yes", ("yes",), 1.0),
    ("field_f1", "couldnt've.", ("[1]", "couldnt've", "12,467"), (0, 1, 1)),
    ("field_f1", "0.5%", ("0.5", "[1]"), (0, 1, 1)),
    ("field_f1", "５", ("５５",), (0, 1, 1)),
    ("field_f1", "i", ("line one two three",), (0, 1, 1)),
    ("field_f1", "12,467", ("12,467",), (1, 0, 0)),
    ("field_f1", "U.S\n", ("what?", "NaN", "U.S."), (0, 1, 1)),
    ("field_f1", "somebody'd\n", (), (0, 1, 0)),
    ("field_f1", "", ("two dogs",), (0, 0, 1)),
    ("field_f1", "two dogs", ("yes", "two dogs", "Paris"), (1, 0, 0)),
    ("field_f1", "2010-05-01", ("2010-05-01",), (1, 0, 0)),
    ("relaxed_accuracy", "couldnt've.", ("[1]", "couldnt've", "12,467"), 0.0),
    ("relaxed_accuracy", "josé maría", ("José María",), 1.0),
    ("relaxed_accuracy", "the Not sure?", ("Not sure",), 0.0),
    ("relaxed_accuracy", ", ", ("1e3",), 0.0),
    ("relaxed_accuracy", "2010-05-01\n", ("Straße",), 0.0),
    ("relaxed_accuracy", "2010-05-01", ("2010-05-01",), 1.0),
    ("relaxed_accuracy", "3, 3", ("1e3", "José María"), 0.0),
    ("relaxed_accuracy", "2010-05-01", ("+5", "2010-05-01"), 1.0),
    ("relaxed_accuracy", "Not sure", ("Not sure",), 1.0),
    ("relaxed_accuracy", "12,467", ("12,467",), 1.0),
    ("denotation_accuracy", "[1]|couldnt've|12,467", ("[1]", "couldnt've", "12,467"), 1.0),
    ("denotation_accuracy", "57.75", ("５５",), 0.0),
    ("denotation_accuracy", "it's|2010-05-01%", ("2010-05-01", "it's"), 0.0),
    ("denotation_accuracy", "line one two three", ("line one two three",), 1.0),
    ("denotation_accuracy", "3.5%|the 42|not sure", ("3.5%", "42", "Not sure"), 0.0),
    ("denotation_accuracy", "the Coca-Cola Company\n", ("the Coca-Cola Company",), 1.0),
    (
        "denotation_accuracy",
        "the Coca-Cola Company|the Coca-Cola Company",
        ("the Coca-Cola Company",),
        1.0,
    ),
    ("denotation_accuracy", " Not sure | Not sure ", ("Not sure",), 1.0),
    (
        "denotation_accuracy",
        "Noe|５５|Dr. O'Neil9",
        ("None\tNone", "Dr. O'Neil\t5.0", "５５\t2010-05-01"),
        0.0,
    ),
    ("denotation_accuracy", "dont know", ("1990–91",), 0.0),
]


@pytest.mark.parametrize(("name", "prediction", "answers", "expected"), ROWS)
def test_verdict(name, prediction, answers, expected):
    metric = METRICS[name]
    verdict = metric.verdict(prediction, answers)
    if name == "field_f1":
        assert (verdict["tp"], verdict["fp"], verdict["fn"]) == expected
    else:
        assert metric.aggregate([verdict]) == pytest.approx(expected)


def test_both_verdicts_occur():
    for name in {row[0] for row in ROWS}:
        assert len({row[3] for row in ROWS if row[0] == name}) > 1, name
