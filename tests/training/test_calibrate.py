import numpy as np
import pytest
from training.smol.calibrate import FIELDS, SOURCES, Marked, held_out, summary

from alignvlm.inference.confidence import Calibration


@pytest.fixture
def answers():
    """Scores that say how often an answer is right, but not in these numbers."""
    rng = np.random.default_rng(0)
    scores = -rng.exponential(1.0, 400)
    right = rng.random(400) < 1 / (1 + np.exp(-(2.5 * scores + 3)))
    return [
        Marked(f"{n // 4}.jpg", "total", "1.00", float(s), bool(r))
        for n, (s, r) in enumerate(zip(scores, right, strict=True))
    ]


def test_the_map_makes_probabilities_of_scores(answers):
    found = summary(answers)
    assert found["calibration_error"] < 0.08 < found["calibration_error_as_it_comes"]
    assert found["errors_at_half"] < 0.25
    assert sum(one["answers"] for one in found["reliability"]) == found["answers"] == 400


def test_a_receipt_is_not_judged_by_a_map_that_saw_it(answers):
    before = held_out(answers)
    other = [
        one._replace(right=not one.right) if one.document == "0.jpg" else one for one in answers
    ]
    same = [n for n, one in enumerate(answers) if one.document in ("0.jpg", "5.jpg")]
    np.testing.assert_array_equal(held_out(other)[same], before[same])
    assert (held_out(other) != before).any()


def test_a_map_that_is_given_judges_all(answers):
    right = np.mean([one.right for one in answers])
    flat = Calibration(0.0, float(np.log(right / (1 - right))))
    found = summary(answers, flat)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-4)
    assert [one["answers"] for one in found["reliability"]] == [400]


def test_every_field_of_a_benchmark_is_asked_for():
    for kind, source in SOURCES.items():
        assert set(FIELDS[kind]) == set(source.questions)
