"""METRICS: verdicts can be stored, resampled and aggregated."""

from __future__ import annotations

import json
import random
import sys

import pytest

from alignvlm.errors import ConfigError, DataError
from alignvlm.eval.metrics import METRICS
from alignvlm.eval.metrics.captions import caption_tokens

PAIRS = [
    ("yes", ("yes",)),
    ("no", ("yes",)),
    ("No", ("no",)),
    ("", ("no",)),
    ("yes it is", ("no",)),
]
PLAIN = sorted(name for name, metric in METRICS.items() if metric.corpus is None)


@pytest.mark.parametrize("name", PLAIN)
def test_a_perfect_and_an_empty_prediction(name):
    metric = METRICS[name]
    perfect = metric.verdicts(["yes"] * 4, [("yes",) * 10] * 4)
    assert metric.name == name
    assert metric.aggregate(perfect) == 1.0
    if name != "pope_yes_ratio":
        empty = metric.verdicts(["", ""], [("no",) * 10] * 2)
        assert metric.aggregate(empty) == 0.0


@pytest.mark.parametrize("name", PLAIN)
def test_verdicts_survive_a_file_and_can_be_resampled(name):
    metric = METRICS[name]
    verdicts = metric.verdicts(*zip(*PAIRS))
    stored = [json.loads(json.dumps(verdict)) for verdict in verdicts]
    assert stored == verdicts
    score = metric.aggregate(stored)
    draw = random.Random(0)
    for _ in range(5):
        assert 0.0 <= metric.aggregate(draw.choices(stored, k=9)) <= 1.0
    assert metric.aggregate(stored * 3) == pytest.approx(score)
    assert metric.aggregate(stored[::-1]) == score
    with pytest.raises(DataError, match="no verdicts"):
        metric.aggregate([])


def test_lists_must_have_one_length():
    with pytest.raises(DataError, match="2 predictions for 1 samples"):
        METRICS["anls"].verdicts(["a", "b"], [("a",)])


def test_cider():
    pytest.importorskip("pycocoevalcap")
    metric = METRICS["cider"]
    answers = [("A dog runs.", "the dog is running"), ("Two red cars.", "cars on a road"), ("sky",)]
    same = metric.verdicts([a[0] for a in answers[:2]] + ["Sky!"], answers)
    other = metric.verdicts(["a car", "A dog runs", ""], answers)
    assert metric.aggregate(same) > 2.0 > metric.aggregate(other)
    assert other[2] == {"score": 0.0}
    assert metric.aggregate(same[:1] * 7) == pytest.approx(same[0]["score"])
    with pytest.raises(DataError, match="two samples"):
        metric.verdicts(["a"], [("a",)])


def test_cider_of_one_sample_is_refused():
    with pytest.raises(DataError, match="whole task"):
        METRICS["cider"].verdict("a", ("a",))


def test_cider_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ConfigError, match="pip install pycocoevalcap"):
        METRICS["cider"].verdicts(["a", "b"], [("a",), ("b",)])


def test_caption_tokens():
    assert caption_tokens("A man's dog, isn't it? T-shirt 3.5 U.S.") == (
        "a man 's dog is n't it t-shirt 3.5 u.s."
    )
