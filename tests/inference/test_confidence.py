"""Scores to probabilities, and how good they are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignvlm.errors import DataError
from alignvlm.inference.confidence import (
    CALIBRATION,
    Calibration,
    calibration_error,
    calibration_of,
    fit_calibration,
    probability,
    risk_coverage,
    score,
)


def drawn(slope: float, intercept: float, count: int = 20_000):
    """Scores, and whether each answer is right with the probability that a map gives."""
    chance = np.random.default_rng(0)
    scores = -chance.exponential(1.0, count)
    p = 1 / (1 + np.exp(-(slope * scores + intercept)))
    return scores, chance.random(count) < p


def test_a_score_is_the_product_of_its_parts():
    assert score([math.log(0.5), math.log(0.5)], math.log(0.8)) == pytest.approx(math.log(0.2))
    assert score([1e-9]) == 0.0  # rounding
    assert probability(math.log(0.2)) == pytest.approx(0.2)
    assert probability(0.0, Calibration(2.0, -1.0)) == pytest.approx(1 / (1 + math.e))


def test_the_fit_finds_the_map_that_answers_were_drawn_from():
    fitted = fit_calibration(*drawn(2.0, 1.5))
    assert fitted.slope == pytest.approx(2.0, rel=0.1)
    assert fitted.intercept == pytest.approx(1.5, rel=0.1)


def test_a_calibrated_score_is_off_by_less():
    scores, right = drawn(0.4, -1.0)
    fitted = fit_calibration(scores, right)
    before = calibration_error(np.exp(scores), right)
    after = calibration_error([fitted(s) for s in scores], right)
    assert after < 0.03 < 0.1 < before


@given(
    st.lists(st.tuples(st.floats(-50, 0), st.booleans()), min_size=2, max_size=40),
)
def test_a_surer_score_never_means_less(pairs):
    scores, right = [s for s, _ in pairs], [r for _, r in pairs]
    if all(right) or not any(right):
        with pytest.raises(DataError, match="right and wrong"):
            fit_calibration(scores, right)
        return
    fitted = fit_calibration(scores, right)
    values = [fitted(s) for s in (-1e6, -50.0, -5.0, -0.1, 0.0)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


def test_scores_that_say_nothing_give_the_share_of_right_answers():
    fitted = fit_calibration([-1.0, -1.0, -1.0, -1.0], [True, True, True, False])
    assert fitted(-1.0) == pytest.approx(0.6667, abs=0.01)
    against = fit_calibration([-3.0, -2.9, -0.1, -0.2], [True, True, False, False])
    assert against.slope == 0.0
    assert against(0.0) == against(-9.0) == 0.5


def test_calibration_error_is_known_by_hand():
    assert calibration_error([0.95, 0.95, 0.05, 0.05], [1, 1, 0, 0]) == pytest.approx(0.05)
    assert calibration_error([1.0, 1.0], [1, 0]) == pytest.approx(0.5)
    assert calibration_error([0.5, 0.52], [1, 0]) == pytest.approx(0.01)


def test_risk_and_coverage_are_known_by_hand():
    coverage, risk = risk_coverage([0.2, 0.9, 0.9, 0.5], [0, 1, 0, 1])
    assert coverage.tolist() == [0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0.5, 1 / 3, 0.5])


@pytest.mark.parametrize(
    ("scores", "right"), [([], []), ([0.5], [1, 0]), ([float("nan"), 0.1], [1, 0])]
)
def test_what_cannot_be_scored_is_refused(scores, right):
    for function in (fit_calibration, calibration_error, risk_coverage):
        with pytest.raises(DataError):
            function(scores, right)


def test_a_calibration_is_found_beside_a_model(tmp_path):
    assert calibration_of(tmp_path) is None
    own = Calibration(1.25, -0.5)
    own.save(tmp_path / CALIBRATION)
    assert calibration_of(tmp_path) == own


@pytest.mark.parametrize(
    "data",
    [{"slope": 1.0}, {"slope": 1.0, "intercept": 0, "x": 1}, {"slope": -1.0, "intercept": 0.0},
     {"slope": "1", "intercept": 0.0}, {"slope": True, "intercept": 0.0}, []],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_by_name(tmp_path, data):
    path = tmp_path / CALIBRATION
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=CALIBRATION):
        Calibration.load(path)
