"""Intervals and tests against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignvlm.eval.intervals import Paired, Resampler, bootstrap_interval, mcnemar
from alignvlm.eval.metrics import METRICS

mean = METRICS["anls"].aggregate
f1 = METRICS["field_f1"].aggregate


def scores(values):
    return [{"score": float(value)} for value in values]


def names(count):
    return [f"g{i}" for i in range(count)]


def test_interval_of_a_proportion_is_the_binomial_one():
    right = [1] * 120 + [0] * 280
    low, high = bootstrap_interval(names(400), scores(right), mean, seed=1)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - half, abs=0.006)
    assert high == pytest.approx(0.3 + half, abs=0.006)


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).uniform(size=500)
    low, high = bootstrap_interval(names(500), scores(values), mean)
    half = 1.96 * values.std() / math.sqrt(500)
    assert low == pytest.approx(values.mean() - half, abs=0.003)
    assert high == pytest.approx(values.mean() + half, abs=0.003)


def test_groups_are_resampled_not_samples():
    """Ten copies of each sample in its own group say nothing new."""
    right = [1] * 30 + [0] * 70
    single = bootstrap_interval(names(100), scores(right), mean)
    copied = bootstrap_interval(
        [name for name in names(100) for _ in range(10)],
        scores([value for value in right for _ in range(10)]),
        mean,
    )
    assert copied == pytest.approx(single, abs=1e-12)
    independent = bootstrap_interval(
        names(1000), scores([value for value in right for _ in range(10)]), mean
    )
    ratio = (single[1] - single[0]) / (independent[1] - independent[0])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1)


def test_interval_is_seeded():
    rng = np.random.default_rng(3)
    verdicts = scores(rng.uniform(size=60))
    groups = [f"g{i // 3}" for i in range(60)]
    assert bootstrap_interval(groups, verdicts, mean, seed=5) == bootstrap_interval(
        groups, verdicts, mean, seed=5
    )
    assert bootstrap_interval(groups, verdicts, mean, seed=5) != bootstrap_interval(
        groups, verdicts, mean, seed=6
    )
    constant = bootstrap_interval(groups, scores([1] * 60), mean)
    assert constant == (1.0, 1.0)


def test_groups_of_different_sizes_keep_their_weight():
    """One group of 3 right, one of 1 wrong: the ratio of sums, 0, 3/4 or 1."""
    sample = Resampler(["a", "a", "a", "b"], scores([1, 1, 1, 0]), mean)
    picks = np.array([[0, 0], [0, 1], [1, 1]])
    assert sample.additive
    assert sample.scores(picks).tolist() == [1.0, 0.75, 0.0]


def test_counts_are_summed_before_f1():
    verdicts = [
        {"tp": 1.0, "fp": 0.0, "fn": 0.0},
        {"tp": 0.0, "fp": 1.0, "fn": 1.0},
        {"tp": 0.0, "fp": 0.0, "fn": 1.0},
    ]
    sample = Resampler(["a", "b", "b"], verdicts, f1)
    assert sample.additive and sample.score == pytest.approx(2 / 5)
    picks = np.array([[0, 0], [0, 1], [1, 1]])
    assert sample.scores(picks) == pytest.approx([1.0, 2 / 5, 0.0])


def test_an_aggregate_that_is_no_sum_is_called_on_all_verdicts():
    def median(verdicts):
        return float(np.median([verdict["x"] for verdict in verdicts]))

    sample = Resampler(["a", "a", "b"], [{"x": 1.0}, {"x": 5.0}, {"x": 9.0}], median)
    assert not sample.additive
    assert sample.scores(np.array([[0, 1], [1, 1], [0, 0]])).tolist() == [5.0, 9.0, 3.0]


def test_exact_sign_flips():
    """n groups that all differ the same way: only 2 of 2**n swaps are as extreme."""
    for n in (3, 6, 10):
        pair = Paired(names(n), scores([0] * n), scores([1] * n), mean)
        assert pair.difference == 1.0
        assert pair.sign_flip() == pytest.approx(2 / 2**n)
    # +1, +1, -1: |sum| >= 1 in all eight swaps
    assert Paired(names(3), scores([0, 0, 1]), scores([1, 1, 0]), mean).sign_flip() == 1.0


def test_drawn_sign_flips_agree_with_the_binomial_test():
    first, second = [0] * 40, [1] * 40
    first[:12], second[:12] = [1] * 12, [0] * 12
    tail = sum(math.comb(40, k) for k in range(13)) / 2**40
    p = Paired(names(40), scores(first), scores(second), mean).sign_flip(seed=2)
    assert p == pytest.approx(2 * tail, abs=0.005)


def test_no_difference_is_not_significant():
    values = scores(np.random.default_rng(1).uniform(size=30))
    pair = Paired(names(30), values, values, mean)
    assert pair.difference == 0.0
    assert pair.interval() == (0.0, 0.0)
    assert pair.sign_flip() == 1.0


def test_paired_interval_is_that_of_the_differences():
    rng = np.random.default_rng(4)
    base = rng.uniform(size=300)
    gain = rng.normal(0.05, 0.1, size=300)
    pair = Paired(names(300), scores(base), scores(base + gain), mean)
    half = 1.96 * gain.std() / math.sqrt(300)
    low, high = pair.interval(seed=1)
    assert low == pytest.approx(gain.mean() - half, abs=0.002)
    assert high == pytest.approx(gain.mean() + half, abs=0.002)


def test_paired_f1_swaps_counts():
    hit, miss = {"tp": 1.0, "fp": 0.0, "fn": 0.0}, {"tp": 0.0, "fp": 1.0, "fn": 1.0}
    pair = Paired(names(5), [miss] * 5, [hit] * 5, f1)
    assert pair.difference == 1.0
    assert pair.sign_flip() == pytest.approx(2 / 32)


def test_mcnemar_is_the_exact_binomial_test():
    first = [True] * 8 + [False] * 2 + [True] * 5
    second = [False] * 8 + [True] * 2 + [True] * 5
    tail = (1 + 10 + 45) / 2**10
    assert mcnemar(first, second) == (8, 2, pytest.approx(2 * tail))
    assert mcnemar(second, first) == (2, 8, pytest.approx(2 * tail))
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)
    assert mcnemar([True] * 3000, [False] * 3000)[2] == pytest.approx(0, abs=1e-300)


def test_what_cannot_be_paired():
    with pytest.raises(ValueError, match="not pairs"):
        Paired(names(2), scores([1, 0]), scores([1]), mean)
    with pytest.raises(ValueError, match="0 verdicts"):
        Resampler([], [], mean)
