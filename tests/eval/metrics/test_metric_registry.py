"""METRICS: verdicts can be stored, resampled and aggregated."""

from __future__ import annotations

import json
import random

import pytest

from alignvlm.errors import DataError
from alignvlm.eval.metrics import METRICS

PAIRS = [
    ("yes", ("yes",)),
    ("no", ("yes",)),
    ("No", ("no",)),
    ("", ("no",)),
    ("yes it is", ("no",)),
]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_perfect_and_an_empty_prediction(name):
    metric = METRICS[name]
    perfect = metric.verdicts(["yes"] * 4, [("yes",) * 10] * 4)
    assert metric.name == name
    assert metric.aggregate(perfect) == 1.0
    empty = metric.verdicts(["", ""], [("no",) * 10] * 2)
    assert metric.aggregate(empty) == 0.0


@pytest.mark.parametrize("name", sorted(METRICS))
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
